"""A TLS client and a server in memory, for tests."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from servo.net.tls import TLS, make_tls
from servo.settings.config_hooks import Hooks, read_hook
from servo.settings.schema import SETTINGS
from servo.settings.sources import Settings


def tls_settings(directory: Path, hook: Any = None, **values: Any) -> Settings:
    """Settings with these values, as read from text, and perhaps an `ssl_context` hook."""
    read = {name: SETTINGS[name].read(value, "test") for name, value in values.items()}
    hooks = Hooks({"ssl_context": read_hook("ssl_context", hook, "test")} if hook else {})
    return Settings({**read, "chdir": str(directory)}, {}, hooks=hooks)


def make_test_tls(directory: Path, hook: Any = None, **values: Any) -> TLS:
    """The contexts for these settings, which must ask for TLS."""
    tls = make_tls(tls_settings(directory, hook, **values))
    assert tls is not None
    return tls


class TLSPair:
    """A client and a server that have completed a handshake in memory.

    tls      the server's contexts
    client   the client's context
    host     the host name that the client asks for
    session  that the client resumes
    """

    def __init__(
        self, tls: TLS, client: ssl.SSLContext, host: str | None, session: Any = None
    ) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = tls.context.wrap_bio(to_server, to_client, server_side=True)
        self.client = client.wrap_bio(to_client, to_server, server_hostname=host, session=session)
        pending = [self.client, self.server]
        for _ in range(10):
            pending = [end for end in pending if not self._continue(end)]
        assert not pending

    @staticmethod
    def _continue(end: ssl.SSLObject) -> bool:
        """Continue a handshake. Returns whether it is complete."""
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def send(self, data: bytes = b"hello") -> bytes:
        """Send data from the server; with TLS 1.3 the tickets of the session come first."""
        self.server.write(data)
        return self.client.read()

    def host_names(self) -> set[str]:
        """The host names in the certificate that the server has presented."""
        names: Any = self.client.getpeercert()
        return {value for _, value in names["subjectAltName"]}
