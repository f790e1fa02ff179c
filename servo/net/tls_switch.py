"""Whether a server has TLS. What TLS takes is imported (for 5 ms) only by those that have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.errors import ConfigError

if TYPE_CHECKING:
    from servo.settings.sources import Settings


def wants_tls(settings: Settings) -> bool:
    """Whether the settings ask for TLS, be it badly: then nothing is ever served without."""
    return bool(
        settings.certfile
        or settings.keyfile
        or settings.sni_certs
        or settings.self_signed
        or settings.hooks.ssl_context
    )


def check_switch(old: Settings, new: Settings) -> None:
    """Refuse a reload that would turn TLS on or off. Raises ConfigError.

    While workers are replaced, clients of one port would meet both; and who loses `certfile` from
    a file by accident must not go on in plaintext.
    """
    if wants_tls(old) != wants_tls(new):
        turn = "off" if wants_tls(old) else "on"
        raise ConfigError(f"a reload can't turn TLS {turn} (certfile, …): that takes a restart")
