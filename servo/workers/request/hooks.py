"""The objects that a worker passes to server hooks. Their attributes have gunicorn's names.

Hooks don't get Servo's own objects, because these have other attributes than gunicorn's. They may
also be compiled, and a hook can't set new attributes on a compiled object.
"""

from __future__ import annotations

import logging
import os
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from servo.apps.loader import load_app, named_app, prepare_import_path
from servo.net.address import TCPAddress, UnixAddress
from servo.shared_memory import row_layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.apps.loader import LoadedApp
    from servo.http.events import Request
    from servo.net.listeners import Listener
    from servo.settings.config_hooks import Hooks
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")


class HookObject:
    """The base of all objects that hooks get. A hook may set its own attributes on them.

    Reading an attribute that only gunicorn has raises an AttributeError, which lists the available
    attributes.
    """

    _what = "object"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = ", ".join(each for each in dir(self) if not each.startswith("_"))
        raise AttributeError(f"a hook's {self._what} has no {name!r} in Servo; it has {known}")


def address_of(listener: Listener) -> tuple[str, int] | str:
    """The address of a listener, in gunicorn's form: (host, port), or a path."""
    address = listener.address
    if isinstance(address, TCPAddress):
        return address.host, address.port
    return address.path if isinstance(address, UnixAddress) else str(address)


class HookSocket:
    """An item of `server.LISTENERS` and `worker.sockets`: a socket with gunicorn's names."""

    def __init__(self, listener: Listener) -> None:
        self.sock = listener.socket
        self.cfg_addr = address_of(listener)
        self._name = listener.name

    def __str__(self) -> str:
        return self._name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class HookApp(HookObject):
    """The `app` of a hook's `worker` or `server`.

    cfg       the settings
    app_uri   the setting `app`
    callable  the application; None until it is loaded. A `post_fork` hook may replace it
    """

    _what = "app"

    def __init__(self, cfg: Settings, *, in_worker: bool) -> None:
        self.cfg = cfg
        self.app_uri: str = cfg.app
        self.callable: Any = None
        self._in_worker = in_worker
        self._loaded: LoadedApp | None = None

    def wsgi(self) -> Any:
        """Return the application, WSGI or ASGI. Loads it if it is not loaded yet.

        Raises AppImportError if it can't be imported, and RuntimeError in the arbiter, which
        imports no application.
        """
        if self.callable is None:
            self.callable = self.load()
        return self.callable

    def load(self) -> Any:
        """Import the application. Raises the same errors as `wsgi`."""
        if not self._in_worker:
            raise RuntimeError(
                "the arbiter imports no application; in the post_worker_init hook,"
                " worker.app.wsgi() returns it"
            )
        os.chdir(self.cfg.directory)
        prepare_import_path(self.cfg)
        self._loaded = load_app(self.cfg.app, self.cfg.interface)
        return self._loaded.app

    def preset(self, loaded: LoadedApp) -> None:
        """Use an application that was imported before this process was forked."""
        self._loaded = loaded
        self.callable = loaded.app

    def take(self) -> LoadedApp:
        """Return the application that the worker will serve: a hook may have replaced it."""
        app = self.wsgi()
        if self._loaded is None or app is not self._loaded.app:
            self._loaded = named_app(app, "worker.app.callable", self.cfg.interface)
        return self._loaded


class ForkedWorker(Protocol):
    """The attributes of a worker's context that its `HookWorker` shows; see WorkerContext."""

    slot: int
    serial: int
    settings: Settings
    listeners: list[Listener]
    arbiter_pid: int
    kept: dict[str, Any]


class ServingWorker(Protocol):
    """The part of a `Worker` that its `HookWorker` uses."""

    draining: bool

    def on_terminate(self) -> None:
        """Ask the arbiter for a successor."""


class HookWorker(HookObject):
    """The `worker` argument of all hooks in a worker process: the same object for all of them.

    pid      the process id
    ppid     the arbiter's process id
    age      the number of workers forked so far, including this one
    slot     the worker's place, 1 to N
    cfg      the settings
    timeout  the setting `timeout`
    log      the error log
    app      see HookApp
    sockets  the sockets that the worker accepts from
    booted   whether the application is loaded
    aborted  whether the arbiter has sent SIGABRT

    max_requests  the setting `max_requests`; a very large number if it is 0, as in gunicorn
    """

    _what = "worker"

    def __init__(self, context: ForkedWorker, row: memoryview) -> None:
        """
        context  the worker's context
        row      the worker's row of the scoreboard
        """
        self.pid = os.getpid()
        self.ppid = context.arbiter_pid
        self.slot = context.slot
        self.age = context.serial
        self.cfg = context.settings
        self.timeout = context.settings.timeout
        self.max_requests = context.settings.max_requests or sys.maxsize
        self.log = log
        self.app = HookApp(context.settings, in_worker=True)
        self.sockets = [HookSocket(listener) for listener in context.listeners]
        self.booted = self.aborted = False
        self._row = row
        self._worker: ServingWorker | None = None
        self._leaves = False
        # The attributes that pre_fork has set on the arbiter's object.
        vars(self).update(context.kept)

    def __str__(self) -> str:
        return f"<Worker {self.pid}>"

    def __getattr__(self, name: str) -> Any:
        if name == "wsgi":
            raise AttributeError("worker.wsgi has no value before the post_worker_init hook")
        worker = vars(self).get("_worker")
        if worker is not None and not name.startswith("_") and hasattr(worker, name):
            return getattr(worker, name)  # an attribute of the user's own worker class
        return super().__getattr__(name)

    def attach(self, worker: ServingWorker) -> None:
        """Connect this object to its worker. Called when the application is loaded."""
        self._worker = worker
        self.booted = True

    @property
    def wsgi(self) -> Any:
        """The application. Raises AttributeError before it is loaded, as gunicorn does."""
        if self.app.callable is None:
            raise AttributeError(name="wsgi", obj=self)  # `__getattr__` then raises the message
        return self.app.callable

    @property
    def alive(self) -> bool:
        """Whether the worker still serves. If a hook sets this to False, the worker is replaced."""
        return not (self._leaves or (self._worker is not None and self._worker.draining))

    @alive.setter
    def alive(self, alive: bool) -> None:
        if not alive and not self._leaves:
            self._leaves = True
            if self._worker is not None:
                self._worker.on_terminate()

    @property
    def nr(self) -> int:
        """The number of requests that the worker has answered."""
        return row_layout.requests_in(self._row.tolist())

    def notify(self) -> None:
        """Send a heartbeat. A slow hook should call this."""
        self._row[row_layout.BEAT_NS] = row_layout.now_ns()


_VERSIONS = {"1.0": (1, 0), "1.1": (1, 1), "2": (2, 0)}


class HookRequest(HookObject):
    """The `req` of the hooks. `headers` are pairs (NAME, value) of text.

    request  the request
    remote   the client's address
    scheme   "http" or "https"
    """

    _what = "request"

    def __init__(self, request: Request, remote: str, scheme: str = "http") -> None:
        self.scheme = scheme
        self.method = request.method
        self.uri = request.target.decode("latin-1")
        self.path = request.path.decode("latin-1")
        self.query = request.query.decode("latin-1")
        self.fragment = ""
        self.version = _VERSIONS[request.version]
        self.headers = [
            (name.decode("latin-1").upper(), value.decode("latin-1"))
            for name, value in request.headers
        ]
        self.remote_addr = remote


class HookResponse(HookObject):
    """The `resp` of `post_request`.

    status       such as "200 OK"; "0" if the client left before there was a response
    status_code  such as 200
    headers      pairs (name, value) of text
    sent         bytes of the body that were sent

    response_length  the Content-Length; None without one, as for a chunked response
    headers_sent     whether a response was begun
    """

    _what = "response"

    def __init__(self, status: int | str, headers: Any, sent: int) -> None:
        self.status = status if isinstance(status, str) else _status_text(status)
        self.status_code = int(self.status[:3])
        self.headers = [(_text(name), _text(value)) for name, value in headers]
        self.sent = sent
        self.headers_sent = self.status_code > 0

    @property
    def response_length(self) -> int | None:
        """The Content-Length; None without one."""
        lengths = [value for name, value in self.headers if name.lower() == "content-length"]
        return int(lengths[0]) if lengths and lengths[0].strip().isdecimal() else None


class RequestHooks:
    """Calls `pre_request` and `post_request`. Logs their exceptions, and still serves the client.

    hooks   the hooks of the configuration
    worker  the `worker` argument for them
    scheme  the scheme of requests from peers that are no trusted proxies
    """

    def __init__(self, hooks: Hooks, worker: object, scheme: str = "http") -> None:
        self._worker = worker
        self._scheme = scheme
        self._before: Callable[..., Any] | None = hooks.pre_request
        self._after: Callable[..., Any] | None = hooks.post_request

    def __bool__(self) -> bool:
        return self._before is not None or self._after is not None

    def before(self, request: Request, remote: str, scheme: str = "") -> HookRequest:
        """Call `pre_request`. Returns its `req`, for `after`.

        request  the request
        remote   the client's address
        scheme   the scheme that a trusted proxy has named; "": none has
        """
        hook_request = HookRequest(request, remote, scheme or self._scheme)
        if self._before is not None:
            try:
                self._before(self._worker, hook_request)
            except (Exception, SystemExit):
                log.exception("Error in the pre_request hook")
        return hook_request

    def after(self, hook_request: HookRequest, environ: Any, response: HookResponse) -> None:
        """Call `post_request`.

        hook_request  the `req`, from `before`
        environ       the request's environ; for ASGI, its scope
        response      the `resp` of the hook
        """
        if self._after is not None:
            try:
                self._after(self._worker, hook_request, environ, response)
            except (Exception, SystemExit):
                log.exception("Error in the post_request hook")


def _status_text(code: int) -> str:
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
