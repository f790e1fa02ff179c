"""Decides when to read changed certificate files again.

A renewal often has two steps: it replaces the certificate, and a moment later the key. So changed
files are read only when two checks in a row have found them in the same state. If they can't be
used even then, the renewal may still be incomplete. So they are read again at each check, and an
error is reported only after `GRACE_S` without a further change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    # The same type as in servo.net.certificate_files.
    Stamps = Mapping[str, tuple[int, ...]]

# If unusable files have stayed unchanged for this many seconds, an error is reported.
GRACE_S: Final = 5.0


class CertificateWatch:
    """The certificate files of one generation.

    interval_s  seconds between two checks, while the files don't change
    stamps      the state of each file when it was read, by path
    now         monotonic seconds
    """

    def __init__(self, interval_s: float, stamps: Stamps, now: float) -> None:
        self._interval_s = interval_s
        self._done = self._seen = stamps
        self._changed_at = now
        self._due_at = now + interval_s

    def is_due(self, now: float) -> bool:
        """Whether a check is due. Call this about once a second."""
        return now >= self._due_at

    def look(self, stamps: Stamps, now: float) -> bool:
        """Note the result of a check. Returns whether to read the files.

        stamps   the state of each file, by path
        now      monotonic seconds

        After reading the files, call `used` or `failed`.
        """
        if stamps == self._done:
            self._due_at = now + self._interval_s
            return False
        self._due_at = now
        if stamps != self._seen:
            self._seen = stamps
            self._changed_at = now
            return False
        return True

    def used(self) -> None:
        """Wait for the next change, because the files could be used."""
        self._done = self._seen

    def failed(self, now: float) -> bool:
        """Note that the files can't be used. Returns whether to log an error."""
        if now - self._changed_at < GRACE_S:
            return False
        self._done = self._seen
        return True
