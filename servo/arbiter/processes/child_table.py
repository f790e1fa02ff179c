"""The table of the arbiter's children: forks them, watches their descriptors, and reaps them.

A fork copies every open descriptor, so each new child holds the arbiter's end of its siblings'
channels, the epoll instance, the pidfile's lock and the listening sockets. Each copy does harm if
it stays open. A channel, for one, reports the arbiter's end only when the last copy is closed. So
the rule is: **a child keeps only what it names**. The arbiter gives everything that it opens to
`own`; `start` closes all of it in the new child, except for what `keep` lists.
"""

from __future__ import annotations

import logging
import select
from functools import partial
from typing import TYPE_CHECKING

from servo.arbiter.processes import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from servo.arbiter.processes.child import ChildProcess, Helper

log = logging.getLogger("servo.error")


class ChildTable:
    """All children of the arbiter, by descriptor and by pid.

    epoll   the arbiter's; the table registers the children's descriptors with it
    """

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._children: dict[ChildProcess, None] = {}
        self._by_fd: dict[int, ChildProcess] = {}
        self._by_pid: dict[int, ChildProcess] = {}
        self._resources: list[tuple[object, Callable[[], None]]] = []
        self._helpers: list[Helper] = []

    def own(self, resource: object, close_in_child: Callable[[], None]) -> None:
        """From now on, new children close this resource unless they keep it.

        resource         whatever is open in the arbiter
        close_in_child   closes a child's copy, and leaves the arbiter's as it is
        """
        self._resources.append((resource, close_in_child))

    def start(
        self,
        child: ChildProcess,
        main: Callable[[], int],
        *,
        keep: Collection[object] = (),
    ) -> None:
        """Fork a child, and watch its descriptor. Sets `child.pid`.

        main   runs in the child; its result is the exit code
        keep   the resources that the child goes on using

        Raises OSError if the descriptor can't be watched or the process can't be forked. The table
        then knows nothing of the child.
        """
        fd = child.fileno()
        if fd >= 0:
            # Before the fork, because this can fail, and every forked child has to be known.
            self._epoll.register(fd, select.EPOLLIN)
            self._by_fd[fd] = child
        self._children[child] = None
        try:
            child.pid = spawn.fork(main, partial(self._close_in_child, keep))
        except OSError:
            self.remove(child)
            raise
        self._by_pid[child.pid] = child

    def keep_running(self, helper: Helper) -> None:
        """Start a helper at the next `tick`, and again whenever it has ended."""
        self._helpers.append(helper)

    def tick(self, now: float) -> None:
        """Start the helpers that should run and don't. `now` is in monotonic seconds."""
        for helper in self._helpers:
            helper.tick(now)

    def reopen_logs(self) -> None:
        """Have the helpers reopen their log files."""
        for helper in self._helpers:
            helper.reopen_logs()

    def stop_helpers(self) -> None:
        """End all helpers, in the order in which they were first started."""
        for helper in self._helpers:
            helper.stop()

    def wait(self, child: ChildProcess) -> None:
        """Block until a child has ended, and reap it. Only for one that ends at once."""
        del self._by_pid[child.pid]
        child.on_exit(spawn.wait(child.pid))

    def watch(self, child: ChildProcess, mask: int) -> None:
        """Change the events that epoll reports of a child's descriptor. Raises OSError."""
        self._epoll.modify(child.fileno(), mask)

    def unwatch(self, child: ChildProcess) -> None:
        """Stop watching a descriptor that is at its end, and stays open. Raises OSError."""
        fd = child.fileno()
        if self._by_fd.get(fd) is child:
            self._epoll.unregister(fd)
            del self._by_fd[fd]

    def release_descriptor(self, child: ChildProcess) -> None:
        """Stop watching a descriptor that is about to be closed. The child itself stays known."""
        try:
            self.unwatch(child)
        except OSError as error:
            log.debug("epoll_ctl: %s", error)  # closing the descriptor takes it out as well
            del self._by_fd[child.fileno()]

    def remove(self, child: ChildProcess) -> None:
        """Forget a child whose descriptor is about to be closed, and whose exit code is not needed.

        If the process still runs, it is reaped as a stranger later.
        """
        self.release_descriptor(child)
        self._children.pop(child, None)
        if self._by_pid.get(child.pid) is child:
            del self._by_pid[child.pid]

    def is_watched(self, fd: int) -> bool:
        """Whether epoll reports the events of this descriptor to a child."""
        return fd in self._by_fd

    def on_ready(self, fd: int, mask: int) -> bool:
        """Pass an event of epoll on to the child with this descriptor. False if there is none."""
        child = self._by_fd.get(fd)
        if child is None:
            return False
        child.on_ready(mask)
        return True

    def reap(self) -> None:
        """Wait for every process that has ended, and pass its exit code on.

        That includes strangers: as PID 1 of a container the arbiter inherits orphans.
        """
        for pid, code in spawn.reap():
            child = self._by_pid.pop(pid, None)
            if child is None:
                log.debug("Reaped process %d, which is no child that is waited for", pid)
            else:
                child.on_exit(code)

    def _close_in_child(self, keep: Collection[object]) -> None:
        self._epoll.close()
        for child in self._children:
            child.close_in_child()
        for resource, close_in_child in self._resources:
            if resource not in keep:
                close_in_child()
