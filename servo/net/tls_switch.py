"""Tells whether the settings ask for TLS.

This stands apart from servo.net.tls, because importing that takes 5 ms, which a server without TLS
saves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.errors import ConfigError

if TYPE_CHECKING:
    from servo.settings.sources import Settings


def wants_tls(settings: Settings) -> bool:
    """Whether any setting asks for TLS, even an incomplete one.

    An incomplete configuration must fail, and not serve in plaintext.
    """
    return bool(
        settings.certfile
        or settings.keyfile
        or settings.sni_certs
        or settings.self_signed
        or settings.hooks.ssl_context
    )


def check_switch(old: Settings, new: Settings) -> None:
    """Raise ConfigError for a reload that would turn TLS on or off.

    While workers are replaced, clients of one port would meet TLS and plaintext at random. And an
    operator who removes `certfile` by accident must not end up with a server in plaintext.
    """
    if wants_tls(old) != wants_tls(new):
        turn = "off" if wants_tls(old) else "on"
        raise ConfigError(f"a reload can't turn TLS {turn} (certfile, …): restart the server")
