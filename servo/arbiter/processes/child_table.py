"""The table of the arbiter's children: forks them, watches their descriptors, and reaps them.

A fork copies every open descriptor, so each new child holds the arbiter's end of its siblings'
channels, the epoll instance, the pidfile's lock and the listening sockets. Such a copy does harm:
for example, a sibling notices the arbiter's end only when all copies of the channel are closed. So
the arbiter registers all its resources with `own`, and `start` closes them in the new child. **A
child keeps only the resources that `start` names in `keep`.**
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

    epoll   the arbiter's epoll instance; the table registers the children's descriptors there
    """

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._children: dict[ChildProcess, None] = {}
        self._by_fd: dict[int, ChildProcess] = {}
        self._by_pid: dict[int, ChildProcess] = {}
        self._resources: list[tuple[object, Callable[[], None]]] = []
        self._helpers: list[Helper] = []
        # Children that a mold was asked to fork, and the exit codes of unknown processes. An
        # unknown process may be one of these children: the mold may not have reported its pid yet.
        self._expected: set[ChildProcess] = set()
        self._strangers: dict[int, int] = {}
        self._adopted_dead: list[tuple[ChildProcess, int]] = []

    def own(self, resource: object, close_in_child: Callable[[], None]) -> None:
        """Make future children close this resource, unless they keep it.

        resource         any object with open descriptors
        close_in_child   closes the child's copy; the arbiter's stays open
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

        child  gets the pid and the descriptor's events
        main   runs in the child; its result is the exit code
        keep   the resources that the child uses

        Raises OSError if the descriptor can't be watched or the process can't be forked. The table
        does not contain the child then.
        """
        fd = child.fileno()
        if fd >= 0:
            # Do this before the fork: if it fails, there must be no child outside the table.
            self._epoll.register(fd, select.EPOLLIN)
            self._by_fd[fd] = child
        self._children[child] = None
        try:
            child.pid = spawn.fork(main, partial(self._close_in_child, keep))
        except OSError:
            self.remove(child)
            raise
        self._by_pid[child.pid] = child

    def adopt(self, child: ChildProcess) -> None:
        """Watch a child that this process forked before an upgrade. `child.pid` is already set.

        Raises OSError if its descriptor can't be watched.
        """
        fd = child.fileno()
        if fd >= 0:
            self._epoll.register(fd, select.EPOLLIN)
            self._by_fd[fd] = child
        self._children[child] = None
        self._by_pid[child.pid] = child

    def expect(self, child: ChildProcess) -> None:
        """Expect a child that a mold will fork. Call `adopt_orphan` or `remove` later.

        Until then, the exit codes of unknown processes are kept, because the child may be reaped
        before its mold has reported the pid.
        """
        self._children[child] = None
        self._expected.add(child)

    def adopt_orphan(self, child: ChildProcess, pid: int, mask: int) -> bool:
        """Take over an expected child that was forked by another process. Sets `child.pid`.

        child  the child
        pid    the pid from the mold
        mask   the events for epoll to report about the child's descriptor

        If the child has already ended, the next `reap` calls its `on_exit`. The pid may be wrong,
        because it comes from a process that runs the application. If this process has no such
        child, do nothing and return False. Raises OSError if the descriptor can't be watched.
        """
        if pid in self._by_pid:
            return False
        is_alive = spawn.is_child(pid)
        if not is_alive and pid not in self._strangers:
            return False
        fd = child.fileno()
        self._epoll.register(fd, mask)
        self._by_fd[fd] = child
        child.pid = pid
        code = self._strangers.pop(pid, None)
        if is_alive:
            self._by_pid[pid] = child
        elif code is not None:
            self._adopted_dead.append((child, code))
        self._forget_expected(child)
        return True

    def _forget_expected(self, child: ChildProcess) -> None:
        self._expected.discard(child)
        if not self._expected:
            self._strangers.clear()

    def keep_running(self, helper: Helper) -> None:
        """Start a helper at the next `tick`, and again after each end."""
        self._helpers.append(helper)

    def tick(self, now: float) -> None:
        """Start the helpers that don't run.

        now  monotonic seconds
        """
        for helper in self._helpers:
            helper.tick(now)

    def reopen_logs(self) -> None:
        """Make the helpers reopen their log files."""
        for helper in self._helpers:
            helper.reopen_logs()

    def stop_helpers(self) -> None:
        """End all helpers, in the order in which they were first started."""
        for helper in self._helpers:
            helper.stop()

    def wait(self, child: ChildProcess) -> None:
        """Block until a child has ended, and reap it. Only for a child that ends at once."""
        del self._by_pid[child.pid]
        child.on_exit(spawn.wait(child.pid))

    def watch(self, child: ChildProcess, mask: int) -> None:
        """Change which events epoll reports about a child's descriptor. Raises OSError."""
        self._epoll.modify(child.fileno(), mask)

    def unwatch(self, child: ChildProcess) -> None:
        """Stop watching a descriptor at its end of stream. It stays open. Raises OSError."""
        fd = child.fileno()
        if self._by_fd.get(fd) is child:
            self._epoll.unregister(fd)
            del self._by_fd[fd]

    def release_descriptor(self, child: ChildProcess) -> None:
        """Stop watching a descriptor before it is closed. The child stays in the table."""
        try:
            self.unwatch(child)
        except OSError as error:
            log.debug("epoll_ctl: %s", error)  # closing the descriptor also removes it from epoll
            del self._by_fd[child.fileno()]

    def remove(self, child: ChildProcess) -> None:
        """Forget a child before its descriptor is closed. `on_exit` is not called.

        If the process still runs, it is reaped later as an unknown one.
        """
        self.release_descriptor(child)
        self._children.pop(child, None)
        self._forget_expected(child)
        if self._by_pid.get(child.pid) is child:
            del self._by_pid[child.pid]

    def is_watched(self, fd: int) -> bool:
        """Whether epoll reports the events of this descriptor to a child."""
        return fd in self._by_fd

    def on_ready(self, fd: int, mask: int) -> bool:
        """Pass an event of epoll to the child with this descriptor; False if there is none."""
        child = self._by_fd.get(fd)
        if child is None:
            return False
        child.on_ready(mask)
        return True

    def reap(self) -> None:
        """Reap every process that has ended, and pass its exit code to its `ChildProcess`.

        This includes unknown processes: as PID 1 of a container, and with molds, the arbiter
        becomes the parent of orphaned processes.
        """
        dead, self._adopted_dead = self._adopted_dead, []
        for adopted, code in dead:
            adopted.on_exit(code)
        for pid, code in spawn.reap():
            child = self._by_pid.pop(pid, None)
            if child is None:
                if self._expected:
                    self._strangers[pid] = code
                log.debug("Reaped process %d, which is no known child", pid)
            else:
                child.on_exit(code)

    def _close_in_child(self, keep: Collection[object]) -> None:
        self._epoll.close()
        for child in self._children:
            child.close_in_child()
        for resource, close_in_child in self._resources:
            if resource not in keep:
                close_in_child()
