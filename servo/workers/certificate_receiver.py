"""Receives changed certificates from the arbiter.

The files come in one message each, so that a long list of authorities does not exceed the size of a
message. The last message is marked as such.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from servo.errors import ConfigError

if TYPE_CHECKING:
    from servo.ipc.messages import CertificateFile
    from servo.net.tls import TLS
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")


class CertificateReceiver:
    """Renews a worker's TLS contexts.

    settings  the settings of the generation
    tls       the worker's TLS contexts; None if it serves plain HTTP
    """

    def __init__(self, settings: Settings, tls: TLS | None) -> None:
        self._settings = settings
        self._tls = tls
        self._received: dict[str, bytes] = {}

    def take(self, message: CertificateFile) -> bool:
        """Take a file. Returns whether it was the last one and the contexts are renewed."""
        if self._tls is None:
            return False
        self._received[message.path] = message.text.encode("latin-1")
        if not message.last:
            return False
        received, self._received = self._received, {}
        # Imported here, because a server without TLS doesn't need it; see servo.net.tls_switch.
        from servo.net.certificate_files import CertificateFiles
        from servo.net.tls import make_tls

        try:
            new = make_tls(self._settings, CertificateFiles(received))
        except (ConfigError, OSError) as error:
            log.error("This worker can't use the new certificate: %s. It keeps the old one", error)
            return False
        if new is None:
            return False
        self._tls.renew(new)
        return True
