"""Makes the TLS contexts from the settings.

The arbiter does this before it forks workers. So it reads the keys with its own rights, and workers
need no right to read them. All workers of a generation inherit the same contexts, and with them the
key by which OpenSSL encrypts session tickets: a client can resume a session with any worker.
"""

from __future__ import annotations

import ssl
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servo.errors import ConfigError
from servo.net.address import TCPAddress, parse_address
from servo.net.certificates import (
    KeyPair,
    date_warning,
    load_pem,
    openssl_reason,
    read_certificates,
    self_signed,
)
from servo.net.tls_switch import wants_tls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.settings.sources import Settings

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TLS:
    """The TLS contexts of one generation of workers.

    context   for new connections; its SNI callback may choose another one
    warnings  for the log, such as about expired certificates
    """

    def __init__(self, context: ssl.SSLContext, warnings: tuple[str, ...] = ()) -> None:
        self.context = context
        self.warnings = warnings
        self._own: dict[ssl.SSLContext, str | None] = {context: None}
        self.cipher_ids = {
            cipher["name"]: cipher["id"] & 0xFFFF for cipher in context.get_ciphers()
        }

    def add(self, context: ssl.SSLContext, certificate: str | None) -> None:
        """Add a context with the certificate (PEM) that it presents."""
        self._own[context] = certificate

    def certificate(self, context: ssl.SSLContext) -> str | None:
        """The certificate (PEM) that a context presents; None if a hook has made the context."""
        return self._own.get(context)

    def offer(self, *protocols: str) -> None:
        """Offer these protocols to clients (ALPN, RFC 7301), the preferred one first."""
        for context in self._own:
            context.set_alpn_protocols(list(protocols))


def make_tls(settings: Settings) -> TLS | None:
    """Make the TLS contexts for these settings; None if they ask for no TLS.

    Reads all files again. Raises ConfigError, which names the file and the problem.
    """
    if not wants_tls(settings):
        return None
    maker = _ContextFactory(settings)
    if settings.hooks.ssl_context is None:
        tls = TLS(maker.default())
    else:
        tls = TLS(_from_hook(settings, maker))
    tls.warnings = tuple(maker.warnings)
    for context, certificate in maker.made.items():
        tls.add(context, certificate)
    return tls


def _from_hook(settings: Settings, maker: _ContextFactory) -> ssl.SSLContext:
    hook = settings.hooks.ssl_context
    assert hook is not None
    try:
        context = hook(settings, maker.default)
    except ConfigError:
        raise
    except Exception as error:
        text = traceback.format_exc()
        raise ConfigError(f"the ssl_context hook failed: {error}\n{text}") from error
    if not isinstance(context, ssl.SSLContext):
        raise ConfigError(f"the ssl_context hook returned {context!r}, not an ssl.SSLContext")
    return context


class _ContextFactory:
    """Makes the contexts of one configuration.

    made      the contexts, each with the certificate (PEM) that it presents
    warnings  for the log
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.made: dict[ssl.SSLContext, str | None] = {}
        self.warnings: list[str] = []
        if settings.self_signed and (settings.certfile or settings.sni_certs):
            raise ConfigError("self_signed can't be combined with certfile or sni_certs")
        if settings.keyfile and not settings.certfile:
            raise ConfigError("keyfile is set, but certfile is not: set it to the certificate")
        if settings.cert_reqs and not settings.ca_certs and settings.hooks.ssl_context is None:
            raise ConfigError(
                "cert_reqs asks clients for certificates: set ca_certs to the CAs that issue them"
            )
        if settings.ca_certs and not settings.cert_reqs:
            self.warnings.append(
                "ca_certs has no effect, because cert_reqs does not ask clients for certificates"
            )

    def default(self) -> ssl.SSLContext:
        """Make the context for clients that name no host, or a host without its own certificate.

        gunicorn calls this function `default_ssl_context_factory`.
        """
        settings = self._settings
        if settings.self_signed:
            return self._self_signed()
        if not settings.certfile:
            if settings.sni_certs:
                raise ConfigError("sni_certs needs certfile, too, for clients that name no host")
            raise ConfigError("the ssl_context hook asks for the default context: set certfile")
        files = {"certfile": settings.certfile, "keyfile": settings.keyfile}
        context = self._from_files(files, "certfile")
        by_host = {
            host: self._from_files(files, f"sni_certs[{host!r}]")
            for host, files in settings.sni_certs.items()
        }
        if by_host:
            context.sni_callback = _SNICallback(by_host)
        return context

    def _from_files(self, files: Mapping[str, str | None], source: str) -> ssl.SSLContext:
        certfile, keyfile = files["certfile"], files.get("keyfile")
        assert certfile is not None
        pair = KeyPair(
            self._path(certfile),
            self._path(keyfile) if keyfile else None,
            lambda: self._password(files.get("keyfile_password_file")),
            source,
        )
        context = self._bare()
        leaf, *_ = pair.load(context)
        warning = date_warning(leaf, pair.certfile, datetime.now(timezone.utc))
        if warning:
            self.warnings.append(warning)
        self.made[context] = leaf
        return context

    def _self_signed(self) -> ssl.SSLContext:
        hosts = dict.fromkeys(("localhost", "127.0.0.1", "::1"))
        for text in self._settings.bind:
            address = parse_address(text)
            if isinstance(address, TCPAddress) and address.host not in ("0.0.0.0", "::"):  # noqa: S104
                hosts[address.host] = None
        pem = self_signed(tuple(hosts))
        context = self._bare()
        load_pem(context, pem)
        _, _, rest = pem.decode("ascii").partition("-----BEGIN CERTIFICATE-----")
        body, dashes, _ = rest.partition("-----END CERTIFICATE-----")
        self.made[context] = f"-----BEGIN CERTIFICATE-----{body}{dashes}\n"
        self.warnings.append(
            "using a throw-away certificate (self_signed), which no client can trust; use it for "
            "development only"
        )
        return context

    def _bare(self) -> ssl.SSLContext:
        """Make a context without a certificate.

        Python's defaults are good: no compression, the server's order of ciphers, and only ciphers
        with forward secrecy.
        """
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[settings.tls_minimum_version]
        context.options |= ssl.OP_NO_RENEGOTIATION
        if settings.ciphers:
            try:
                context.set_ciphers(settings.ciphers)
            except ssl.SSLError as error:
                raise ConfigError(f"ciphers: OpenSSL knows none of {settings.ciphers!r}") from error
        if settings.ca_certs:
            path = self._path(settings.ca_certs)
            read_certificates(path, "ca_certs")
            try:
                context.load_verify_locations(path)
            except ssl.SSLError as error:
                raise ConfigError(
                    f"ca_certs: {path} can't be used: {openssl_reason(error)}"
                ) from error
        context.verify_mode = ssl.VerifyMode(settings.cert_reqs)
        return context

    def _password(self, own_file: str | None) -> bytes | None:
        settings = self._settings
        name = "sni_certs" if own_file else "keyfile_password_file"
        if own_file is None and settings.keyfile_password is not None:
            return bytes(settings.keyfile_password, "utf-8")
        file = own_file or settings.keyfile_password_file
        if not file:
            return None
        path = self._path(file)
        try:
            return Path(path).read_bytes().split(b"\n", 1)[0].rstrip(b"\r")
        except OSError as error:
            raise ConfigError(f"{name}: can't read {path}: {error.strerror}") from error

    def _path(self, path: str) -> str:
        return str(Path(self._settings.directory) / path)


class _SNICallback:
    """OpenSSL's SNI callback (RFC 6066 section 3): chooses the context for the client's host."""

    def __init__(self, by_host: Mapping[str, ssl.SSLContext]) -> None:
        self._by_host = by_host

    def __call__(self, connection: Any, host: str | None, _context: ssl.SSLContext) -> None:
        if not host:
            return
        name = host.lower().rstrip(".")
        found = self._by_host.get(name)
        if found is None:
            found = self._by_host.get("*." + name.partition(".")[2])
        if found is not None:
            connection.context = found
