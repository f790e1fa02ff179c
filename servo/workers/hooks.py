"""gunicorn's `pre_request` and `post_request` hooks, and what they are given."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.http.events import Request
    from servo.settings.hooks import Hooks

log = logging.getLogger("servo.error")


_VERSIONS = {"1.0": (1, 0), "1.1": (1, 1), "2": (2, 0)}


class HookRequest:
    """The `req` of the hooks, with the names that gunicorn's has. Headers are (NAME, value)."""

    def __init__(self, request: Request, remote: str) -> None:
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


class HookResponse:
    """The `resp` of `post_request`: the status as code and as sent, headers, bytes of the body."""

    def __init__(self, status: int | str, headers: Any, sent: int) -> None:
        self.status = status
        self.status_code = int(str(status)[:3])
        self.headers = list(headers)
        self.sent = sent


class RequestHooks:
    """Calls the hooks for a worker. What they raise is logged: it is not the client's fault."""

    def __init__(self, hooks: Hooks, worker: object) -> None:
        self._worker = worker
        self._before: Callable[..., Any] | None = hooks.pre_request
        self._after: Callable[..., Any] | None = hooks.post_request

    def __bool__(self) -> bool:
        return self._before is not None or self._after is not None

    def before(self, request: Request, remote: str) -> HookRequest:
        """Call `pre_request`; what is returned is to be given to `after`."""
        facade = HookRequest(request, remote)
        if self._before is not None:
            try:
                self._before(self._worker, facade)
            except (Exception, SystemExit):
                log.exception("Error in the pre_request hook")
        return facade

    def after(self, facade: HookRequest, environ: Any, response: HookResponse) -> None:
        """Call `post_request`."""
        if self._after is not None:
            try:
                self._after(self._worker, facade, environ, response)
            except (Exception, SystemExit):
                log.exception("Error in the post_request hook")
