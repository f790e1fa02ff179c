"""Describes a TLS connection to applications: ASGI's `tls` extension, and mod_ssl's variables."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servo.net.tls import TLS

# Python's name of an attribute -> its short name (RFC 4514 section 3). Other names are valid as
# Python writes them: RFC 4512 calls them descriptors.
_SHORT = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_ESCAPED = {ord(character): f"\\{character}" for character in '"+,;<>\\'}


class TLSFacts:
    """The description of one connection.

    extension  the value of `scope["extensions"]["tls"]` (ASGI's TLS extension 0.2)
    environ    the entries of a WSGI environ, with the names of Apache's mod_ssl
    """

    __slots__ = ("environ", "extension")

    def __init__(self, tls: TLS, connection: ssl.SSLObject) -> None:
        """Describe a connection after its handshake.

        tls         the contexts of this worker
        connection  the ssl module's object
        """
        version = connection.version() or ""
        cipher = connection.cipher()
        name = cipher[0] if cipher else ""
        client = connection.getpeercert(binary_form=True)
        facts: Any = connection.getpeercert() if client else None
        subject = distinguished_name(facts["subject"]) if facts else None
        self.extension: dict[str, Any] = {
            "server_cert": tls.certificate(connection.context),
            "client_cert_chain": _chain(connection, client) if client else [],
            "client_cert_name": subject,
            # There can't be an error: a certificate that fails verification ends the handshake.
            "client_cert_error": None,
            "tls_version": _VERSIONS.get(version),
            "cipher_suite": tls.cipher_ids.get(name),
        }
        self.environ: dict[str, str] = {
            "HTTPS": "on",
            "SSL_PROTOCOL": version,
            "SSL_CIPHER": name,
            "SSL_CLIENT_VERIFY": "SUCCESS" if client else "NONE",
        }
        if client and facts:
            self.environ.update(
                SSL_CLIENT_CERT=ssl.DER_cert_to_PEM_cert(client),
                SSL_CLIENT_S_DN=_wsgi_string(subject or ""),
                SSL_CLIENT_I_DN=_wsgi_string(distinguished_name(facts["issuer"])),
                SSL_CLIENT_M_SERIAL=facts["serialNumber"],
                SSL_CLIENT_V_START=facts["notBefore"],
                SSL_CLIENT_V_END=facts["notAfter"],
            )


def distinguished_name(name: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """Format a name from `SSLObject.getpeercert` by RFC 4514, which puts the last part first."""
    return ",".join(
        "+".join(f"{_SHORT.get(kind, kind)}={_escape(value)}" for kind, value in part)
        for part in reversed(name)
    )


def _escape(value: str) -> str:
    """Escape a value (RFC 4514 section 2.4)."""
    text = value.translate(_ESCAPED).replace("\0", "\\00")
    if text[:1] in (" ", "#"):
        text = "\\" + text
    return text[:-1] + "\\ " if value.endswith(" ") and len(value) > 1 else text


def _chain(connection: ssl.SSLObject, leaf: bytes) -> list[str]:
    """The client's certificate and its issuers (PEM). Before Python 3.13, without the issuers."""
    verified = getattr(connection, "get_verified_chain", None)
    chain: list[bytes] = verified() if verified is not None else [leaf]
    return [ssl.DER_cert_to_PEM_cert(der) for der in chain]


def _wsgi_string(text: str) -> str:
    """Turn text into a WSGI string: encode it in UTF-8, decode it as latin-1 (PEP 3333)."""
    return text.encode().decode("latin-1")
