"""Switches to certificates that have changed on disk, without a reload (`certfile_watch`).

The arbiter watches the files, because workers may have no right to read them. It makes new TLS
contexts for future workers, and sends the files' bytes to running workers; see
`servo.workers.certificate_receiver`. Existing connections keep their certificates.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from servo.arbiter.core.certificate_watch import CertificateWatch
from servo.errors import ConfigError
from servo.ipc.messages import CertificateFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.generations import Generations
    from servo.ipc.messages import Message
    from servo.net.certificate_files import CertificateFiles
    from servo.net.tls import TLS
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")


class CertificateRenewal:
    """Watches the certificate files of all generations.

    generations  the settings and TLS contexts
    send         sends a message to each worker of a generation
    """

    def __init__(self, generations: Generations, send: Callable[[int, Message], object]) -> None:
        self._generations = generations
        self._send = send
        self._watches: dict[int, CertificateWatch] = {}
        # The files that were sent last, by generation. A mold still has the old contexts, so the
        # workers that it forks need the files, too.
        self._sent: dict[int, list[CertificateFile]] = {}

    def files_for(self, generation: int) -> list[CertificateFile]:
        """The messages to send to a worker that this generation's mold has forked."""
        return self._sent.get(generation, [])

    def copy(self, old: int, new: int) -> None:
        """Let a new generation's workers get the files that the old generation's workers got."""
        if old in self._sent:
            self._sent[new] = self._sent[old]

    def tick(self, now: float) -> None:
        """Check the files that are due. Call this once a second.

        now  monotonic seconds
        """
        for generation in self._watches.keys() - self._generations.numbers():
            del self._watches[generation]
            self._sent.pop(generation, None)
        for generation in self._generations.numbers():
            settings, tls = self._generations[generation]
            if tls is not None and tls.files and settings.certfile_watch:
                self._look(generation, settings, tls, now)

    def _look(self, generation: int, settings: Settings, tls: TLS, now: float) -> None:
        from servo.net.certificate_files import CertificateFiles, stamps  # see tls_switch

        watch = self._watches.get(generation)
        if watch is None:
            watch = CertificateWatch(settings.certfile_watch, tls.files, now)
            self._watches[generation] = watch
        if not watch.is_due(now) or not watch.look(stamps(tls.files), now):
            return
        is_current = settings is self._generations.settings
        if settings.hooks.ssl_context is not None:
            watch.used()
            if is_current:
                log.warning(
                    "Certificate files have changed. They are used by an ssl_context hook, so they "
                    "take effect at the next reload: send HUP"
                )
            return
        files = CertificateFiles()
        try:
            new = _make(settings, files)
        except ConfigError as error:
            # During a reload two generations may use the same files.
            if watch.failed(now) and is_current:
                log.error("%s. The previous certificate stays in use", error)
            return
        watch.used()
        if new.digest != tls.digest:
            tls.renew(new)
            # Send the files to each generation that has these contexts: after a refork, the old and
            # the new generation share them.
            for number in self._generations.numbers():
                if self._generations[number][1] is tls:
                    sent = self._send_files(number, files)
                    if settings.preload_app:
                        self._sent[number] = sent
            if is_current:
                _log_renewed(settings, new)

    def _send_files(self, generation: int, files: CertificateFiles) -> list[CertificateFile]:
        last = len(files.contents) - 1
        sent = [
            CertificateFile(path, data.decode("latin-1"), number == last)
            for number, (path, data) in enumerate(files.contents.items())
        ]
        for message in sent:
            self._send(generation, message)
        return sent


def _make(settings: Settings, files: CertificateFiles) -> TLS:
    from servo.net.tls import make_tls  # see servo.net.tls_switch

    tls = make_tls(settings, files)
    assert tls is not None  # the old contexts came from these settings, so they ask for TLS
    return tls


def _log_renewed(settings: Settings, new: TLS) -> None:
    from servo.net.certificates import valid_until  # see servo.net.tls_switch

    pem = new.certificate(new.context)
    assert pem is not None
    log.info(
        "Certificate files have changed: new connections get the certificate in %s, which is valid "
        "until %s UTC",
        settings.certfile,
        f"{valid_until(pem):%Y-%m-%d %H:%M}",
    )
    for text in new.warnings:
        log.warning("%s", text)
