"""Tells whether the settings ask for TLS.

This is not part of servo.net.tls, because importing that module takes 5 ms, and a server without
TLS does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.errors import ConfigError

if TYPE_CHECKING:
    from servo.settings.sources import Settings


def wants_tls(settings: Settings) -> bool:
    """Whether any setting asks for TLS, even an incomplete one.

    With incomplete TLS settings the start must fail: the server must not serve plaintext.
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

    During the reload, clients of one port would get TLS and plaintext at random. And if an operator
    removes `certfile` by accident, the server must not serve plaintext.
    """
    if wants_tls(old) != wants_tls(new):
        turn = "off" if wants_tls(old) else "on"
        raise ConfigError(f"a reload can't turn TLS {turn} (certfile, …): restart the server")
