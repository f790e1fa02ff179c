"""Makes the TLS contexts from the settings.

The arbiter makes them before it forks workers. So only the arbiter needs the right to read the
keys. All workers of a generation inherit the same contexts, and OpenSSL's key for session tickets:
a client can resume a session with any worker.

When certificates change on disk, `TLS.renew` switches to them, in the arbiter and in each worker.
Connections still begin in the old context, because it has the key for tickets. But it gets an SNI
callback, which switches each connection to a context with the new certificate. Loading the new
certificate into the old context would not be enough: OpenSSL keeps one certificate for each key
type, so an old RSA certificate would stay beside a new ECDSA one.
"""

from __future__ import annotations

import ssl
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from servo.errors import ConfigError
from servo.net.address import TCPAddress, parse_address
from servo.net.certificate_files import CertificateFiles
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

    context   the context for clients that name no host, or a host without its own certificate
    by_host   the contexts of other hosts, by name or pattern
    files     the files with the certificates and keys
    warnings  texts for the log, such as about expired certificates

    The attribute `context` is the context for new connections; its SNI callback may switch to
    another one. The attribute `files` has the state of each file before it was read, by path (see
    `certificate_files`), and `digest` a hash over the files' bytes.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        by_host: Mapping[str, ssl.SSLContext] | None = None,
        files: CertificateFiles | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        read = files or CertificateFiles()
        self.context = self._default = context
        self._by_host = by_host or {}
        self.warnings = warnings
        self.files = read.stamps
        self.digest = read.digest()
        # Context -> its certificate. The keys are weak references: after `renew`, an old context
        # stays only as long as older connections use it.
        self._own: WeakKeyDictionary[ssl.SSLContext, str | None] = WeakKeyDictionary()
        self._own[context] = None
        self._protocols: list[str] = []
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
        self._protocols = list(protocols)
        for context in self._own:
            context.set_alpn_protocols(self._protocols)

    def renew(self, new: TLS) -> None:
        """Use new certificates for new connections. Existing connections keep theirs.

        new   contexts for the same settings, from the changed files
        """
        if new._protocols != self._protocols:
            new.offer(*self._protocols)
        self._own.update(new._own)
        if _authorities(new.context) == _authorities(self._default):
            self.context.sni_callback = _SNICallback(new.context, new._by_host)
        else:
            # The authorities for clients' certificates have changed. A client with a ticket need
            # not show its certificate again, so old tickets must become invalid: use a context with
            # a new key for tickets.
            self.context = new.context
        self._default, self._by_host = new.context, new._by_host
        self.warnings, self.files, self.digest = new.warnings, new.files, new.digest


def make_tls(settings: Settings, files: CertificateFiles | None = None) -> TLS | None:
    """Make the TLS contexts for these settings; None without TLS.

    settings  the configuration
    files     the contents of its files; None to read all files from the disk

    Raises ConfigError, which names the file and the problem.
    """
    if not wants_tls(settings):
        return None
    maker = _ContextFactory(settings, files or CertificateFiles())
    has_hook = settings.hooks.ssl_context is not None
    context = _from_hook(settings, maker) if has_hook else maker.default()
    tls = TLS(context, maker.by_host, maker.files, tuple(maker.warnings))
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

    settings  the configuration
    files     reads its files

    made      the contexts, each with its certificate (PEM)
    by_host   the contexts of `sni_certs`, by host name or pattern
    warnings  texts for the log
    """

    def __init__(self, settings: Settings, files: CertificateFiles) -> None:
        self._settings = settings
        self.files = files
        self.made: dict[ssl.SSLContext, str | None] = {}
        self.by_host: dict[str, ssl.SSLContext] = {}
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
        self.by_host = {
            host: self._from_files(files, f"sni_certs[{host!r}]")
            for host, files in settings.sni_certs.items()
        }
        if self.by_host:
            # Set it before the ssl_context hook runs, so that the hook can replace it.
            context.sni_callback = _SNICallback(None, self.by_host)
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
        leaf, *_ = pair.load(context, self.files)
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
            read_certificates(path, "ca_certs", self.files)
            try:
                with self.files.names_for_openssl(path) as (name,):
                    context.load_verify_locations(name)
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
        return self.files.read(self._path(file), name).split(b"\n", 1)[0].rstrip(b"\r")

    def _path(self, path: str) -> str:
        return str(Path(self._settings.directory) / path)


def _authorities(context: ssl.SSLContext) -> set[bytes]:
    """The certificates (DER) of the authorities for clients' certificates."""
    return set(context.get_ca_certs(binary_form=True))


class _SNICallback:
    """OpenSSL's SNI callback (RFC 6066 section 3): chooses the context for the client's host.

    default  the context for any other host; None to keep the connection's context
    by_host  the contexts of hosts, by name or pattern
    """

    def __init__(
        self, default: ssl.SSLContext | None, by_host: Mapping[str, ssl.SSLContext]
    ) -> None:
        self._default = default
        self._by_host = by_host

    def __call__(self, connection: Any, host: str | None, _context: ssl.SSLContext) -> None:
        # OpenSSL calls this for each connection, even if the client names no host.
        found = self._find(host.lower().rstrip(".")) if host else self._default
        if found is not None:
            connection.context = found

    def _find(self, name: str) -> ssl.SSLContext | None:
        found = self._by_host.get(name)
        if found is None:
            found = self._by_host.get("*." + name.partition(".")[2])
        return found or self._default
