"""The process of a mold: it imports the application once, and forks workers on orders.

The arbiter sends the orders over a socket (see `fork_order`). Each order brings the descriptors of
its worker, including the listeners. So the mold itself holds no listeners: they would keep a port
open after all workers have closed it.

The mold forks twice. It forks an intermediate process, which forks the worker and exits. Then the
worker is an orphan, and the arbiter (a subreaper, see prctl(2)) becomes its parent. So the arbiter
reaps it like its own children, and the death of a mold does not affect its workers.

With `refork_after`, the next mold comes from a worker: see `_Mold.fork_next`. That worker has
drained, so it runs no request. It forks the mold in the same way, as an orphan, and exits. The mold
begins as a copy of the worker, and drops the worker's identity: its channel, its row and its signal
handlers.

Threads, event loops and the ASGI lifespan would not survive a fork, so they start in the workers.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from servo.apps.loader import load_app
from servo.errors import AppImportError, BootError, ServoError
from servo.ipc.channel import Channel
from servo.ipc.messages import EXIT_APP, EXIT_BOOT
from servo.logs import error_log as log_module
from servo.net.listeners import Listener
from servo.pools.places import places
from servo.settings.sources import SLOT_VARIABLE
from servo.workers.allocator import return_freed_memory
from servo.workers.boot import (
    describe,
    keep_output,
    prepare_import,
    run_worker,
    set_title,
    shorten,
)
from servo.workers.context import WorkerContext
from servo.workers.fork_order import check_fds, receive_order, unpickle_attributes
from servo.workers.fork_safety import (
    check_descriptors,
    open_sockets,
    warn_of_sockets,
    warn_of_threads,
)
from servo.workers.forks import IGNORED
from servo.workers.python_exit import register_exit_functions
from servo.workers.registry import worker_for
from servo.workers.warm_up import warm_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.apps.loader import LoadedApp
    from servo.net.address import Address
    from servo.net.tls import TLS
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard
    from servo.workers.fork_order import ForkOrder

log = logging.getLogger("servo.error")

# A failure report is one datagram. It must fit into the socket's buffer, 208 KiB, and a character
# takes up to four bytes.
MAX_FAILURE_CHARACTERS = 30_000
# How many seconds to wait for the end of an intermediate process, which normally ends at once.
ADOPTION_S = 5.0


@dataclass(frozen=True, slots=True)
class MoldContext:
    """The start-up context of a mold.

    generation        the generation of its workers
    settings          the generation's settings
    tls               the generation's TLS contexts, or None
    scoreboard        the shared memory with a row for each worker
    server            the `server` argument of hooks
    arbiter_pid       the arbiter's process id
    sock              the socket for orders and answers
    run_to_exit       runs a function as the code of a forked process; does not return
    die_with_arbiter  lets the kernel end this process when the arbiter ends
    """

    generation: int
    settings: Settings
    tls: TLS | None
    scoreboard: Scoreboard
    server: object
    arbiter_pid: int
    sock: socket.socket
    run_to_exit: Callable[[Callable[[], int]], NoReturn]
    die_with_arbiter: Callable[[], None]


def run_mold(context: MoldContext) -> int:
    """Run a mold to its end. Returns its exit code.

    The caller must have just forked, and then reset the arbiter's signal handlers and closed the
    descriptors that the mold does not need.
    """
    return _Mold(context).run()


class _Mold:
    def __init__(self, context: MoldContext) -> None:
        self._context = context
        self._sock = context.sock
        self._app: LoadedApp | None = None

    def run(self) -> int:
        # New workers inherit this process's open log files, so reopen them after a rotation.
        signal.signal(signal.SIGUSR1, lambda _signum, _frame: log_module.reopen_logs())
        faulthandler.enable(file=log_module.crash_fd(), all_threads=True)
        self._keep_output()
        register_exit_functions()
        try:
            self._app = self._load()
        except AppImportError as error:
            return self._failed("app", f"{error}\n{error.details}".rstrip(), EXIT_APP)
        except ServoError as error:
            return self._failed("boot", str(error), EXIT_BOOT)
        except Exception as error:  # noqa: BLE001  the arbiter gets the traceback, and logs it
            return self._failed("boot", describe(error), EXIT_BOOT)
        return self._serve_orders()

    def _keep_output(self) -> None:
        rings = self._context.scoreboard.output
        if rings is not None:
            row = rings.mold_row(self._context.generation)
            keep_output(self._context.scoreboard, row, has_access_log=False)

    def _serve_orders(self) -> int:
        # The garbage collector writes into the objects that it examines, and each write makes a
        # copy of a page that the workers share. It does not examine frozen objects.
        gc.collect()
        return_freed_memory()
        gc.freeze()
        self._answer({"ready": True})
        return self._obey()

    def _load(self) -> LoadedApp:
        settings = self._context.settings
        sockets = open_sockets()
        places.enter(settings.pools)
        prepare_import(settings, forget_handlers=True)
        # Call this again, because the kernel forgets it when the process changes its user.
        self._context.die_with_arbiter()
        app = load_app(settings.app, settings.interface)
        check_descriptors(self._sock)
        # This imports the worker class, so the workers share it.
        worker_class = worker_for(settings, app)
        if settings.refork_after and not worker_class.can_fork_mold:
            raise BootError(
                "refork_after is for WSGI apps in workers of class sync or thread, not of class "
                f"{worker_class.kind}: leave refork_after out"
            )
        warm_up(settings, app, self._context.tls is not None)
        warn_of_threads("while the app was imported")
        warn_of_sockets(sockets)
        return app

    def _failed(self, kind: str, text: str, code: int) -> int:
        self._answer({"failed": kind, "text": shorten(text, MAX_FAILURE_CHARACTERS)})
        return code

    def _answer(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
        try:
            self._sock.send(data)
        except OSError as error:
            # The arbiter has closed its end. The next read reports this, and the mold ends.
            log.debug("The arbiter does not take the mold's answer: %s", error)

    # --- orders -----------------------------------------------------------------------------------

    def _obey(self) -> int:
        """Carry out orders until the arbiter closes its end."""
        while True:
            received = receive_order(self._sock)
            if received is None:
                # Don't call the application's exit functions here: only the workers call them.
                atexit._clear()
                logging.shutdown()
                return 0
            order, fds = received
            try:
                check_fds(order, fds)
                pid = self._fork(order, fds)
            except OSError as error:
                self._answer({"serial": order.serial, "error": str(error)})
            else:
                self._answer({"serial": order.serial, "pid": pid})
            finally:
                for fd in fds:
                    os.close(fd)

    def _fork(self, order: ForkOrder, fds: list[int]) -> int:
        """Fork a worker. Returns its pid. Raises OSError."""

        def work() -> int:
            self._sock.close()
            return run_worker(self._worker_context(order, fds))

        return self._fork_orphan(work, lambda: None)

    def fork_next(
        self,
        worker: WorkerContext,
        sock: socket.socket,
        generation: int,
        close_worker: Callable[[], None],
    ) -> int:
        """In a drained worker: fork the mold of a generation. Returns its pid. Raises OSError.

        worker        the worker's context
        sock          the mold's end of the socket for its orders and answers
        generation    the generation
        close_worker  closes the descriptors of the worker's loop
        """
        following = _Mold(replace(self._context, generation=generation, sock=sock))
        following._app = self._app
        # `Forks` calls this in the intermediate process, and itself closes the worker's other
        # resources.
        before, worker.forks.in_child = worker.forks.in_child, close_worker

        def run_following() -> int:
            if worker.dump_fd >= 0:
                os.close(worker.dump_fd)
            return following.run_again()

        try:
            return self._fork_orphan(run_following, worker.forks.forget)
        finally:
            worker.forks.in_child = before

    def run_again(self) -> int:
        """Run a mold that was forked from a worker, which has already used the application."""
        for signum in IGNORED:
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda _signum, _frame: log_module.reopen_logs())
        # Disable faulthandler first: `enable` alone would keep the worker's handlers.
        faulthandler.disable()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        faulthandler.enable(file=log_module.crash_fd(), all_threads=True)
        os.environ.pop(SLOT_VARIABLE, None)
        self._keep_output()
        context = self._context
        set_title(f"servo: mold of generation {context.generation} [{context.settings.app}]")
        _wait_for_adoption(context.arbiter_pid)
        context.die_with_arbiter()
        return self._serve_orders()

    def _fork_orphan(self, main: Callable[[], int], prepare: Callable[[], None]) -> int:
        """Fork a process through an intermediate process. Returns its pid. Raises OSError.

        main     runs in the process; its result is the exit code
        prepare  runs first in the intermediate process
        """
        for stream in (sys.stdout, sys.stderr):
            # Flush, or each worker would write the application's buffered output again.
            if stream is not None:
                # OSError: the stream has no reader. ValueError: it is closed.
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            middle = _fork_quietly()
            if middle == 0:
                self._context.run_to_exit(lambda: _in_between(main, prepare, reader, writer))
        finally:
            os.close(writer)
        said = os.read(reader, 4096)
        os.close(reader)
        with contextlib.suppress(ChildProcessError):  # the application ignores SIGCHLD
            os.waitpid(middle, 0)
        if not said.isdigit():
            raise OSError(said.decode("utf-8", "replace") or "the process in between has died")
        return int(said)

    def _worker_context(self, order: ForkOrder, fds: list[int]) -> WorkerContext:
        context = self._context
        waiting = iter(fds)
        channel = Channel(socket.socket(fileno=next(waiting)))
        dump_fd = next(waiting) if order.has_dump_file else -1
        mold_sock = socket.socket(fileno=next(waiting)) if order.has_mold_socket else None
        worker = WorkerContext(
            slot=order.slot,
            serial=order.serial,
            generation=context.generation,
            settings=context.settings,
            channel=channel,
            dump_fd=dump_fd,
            listeners=[
                _listener(fd, *listener)
                for fd, listener in zip(waiting, order.listeners, strict=True)
            ],
            scoreboard=context.scoreboard,
            row_index=order.row_index,
            arbiter_pid=context.arbiter_pid,
            server=context.server,
            tls=context.tls,
            kept=unpickle_attributes(order.kept),
            app=self._app,
        )
        if mold_sock is not None:
            worker.fork_mold = partial(self.fork_next, worker, mold_sock)
        return worker


def _in_between(
    main: Callable[[], int], prepare: Callable[[], None], reader: int, writer: int
) -> int:
    """Run the intermediate process: fork the new process, which runs `main`, and exit."""
    os.close(reader)
    log_module.forget_pending()
    prepare()
    try:
        pid = _fork_quietly()
    except OSError as error:
        pid, said = -1, str(error)
    else:
        said = str(pid)
    if pid != 0:
        # If the process that wanted the fork was killed meanwhile, nobody reads the pid.
        with contextlib.suppress(BrokenPipeError):
            os.write(writer, said.encode())
        os._exit(0)  # skip the exit functions: only the workers may call them
    os.close(writer)
    return main()


def _wait_for_adoption(arbiter_pid: int) -> None:
    """Wait until the intermediate process has ended, and the arbiter is this process's parent."""
    between = os.getppid()
    if between == arbiter_pid:
        return
    try:
        pidfd = os.pidfd_open(between)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll(ADOPTION_S * 1000)
    os.close(pidfd)


def _fork_quietly() -> int:
    with warnings.catch_warnings():
        # Python warns about threads at a fork. The mold has already logged a clearer warning, and
        # the application may have turned Python's warnings into errors.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _listener(fd: int, address: Address, name: str, requested: Address, label: str) -> Listener:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return Listener(sock, address, name, requested, label)
