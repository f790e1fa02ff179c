"""Loads certificates and keys. Its error messages tell operators what to do.

OpenSSL's own messages ("key values mismatch") name neither the file nor the setting.
"""

from __future__ import annotations

import functools
import os
import re
import ssl
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from servo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.net.certificate_files import CertificateFiles

_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL | re.ASCII
)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate file and the file of its private key.

    certfile  the file with the certificate, followed by its issuers (PEM)
    keyfile   the file with the key; None if the certificate file has it
    password  returns the password of an encrypted key; None if it is not known
    source    the setting that names the files, for messages
    """

    certfile: str
    keyfile: str | None
    password: Callable[[], bytes | None]
    source: str

    def load(self, context: ssl.SSLContext, files: CertificateFiles) -> list[str]:
        """Load the certificate and key into a TLS context.

        context  the context, which will present the certificate
        files    reads the files

        Returns the certificate and its issuers (PEM). Raises ConfigError, which names the file and
        the problem.
        """
        chain = read_certificates(self.certfile, self.source, files)
        keyfile = self.keyfile or self.certfile
        text = files.read(keyfile, f"the key of {self.source}")
        if b"PRIVATE KEY-----" not in text:
            raise ConfigError(
                f"{self.source}: {keyfile} contains no private key (PEM)"
                + ("" if self.keyfile else "; set keyfile to the file that does")
            )
        asked: list[bytes] = []

        def password() -> bytes:
            secret = self.password()
            if secret is None:
                raise ConfigError(
                    f"{self.source}: the key in {keyfile} is encrypted; give its password in "
                    "keyfile_password_file, or SERVO_KEYFILE_PASSWORD in the environment"
                )
            asked.append(secret)
            return secret

        try:
            with files.names_for_openssl(self.certfile, keyfile) as (cert, key):
                context.load_cert_chain(cert, key, password)
        except ssl.SSLError as error:
            raise ConfigError(self._explain(error, keyfile, bool(asked))) from error
        except (OSError, ValueError) as error:  # ValueError: a password of more than 1,023 bytes
            raise ConfigError(f"{self.source}: {keyfile} can't be used: {error}") from error
        return chain

    def _explain(self, error: ssl.SSLError, keyfile: str, had_password: bool) -> str:
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH" or reason == "KEY_TYPE_MISMATCH":
            return (
                f"{self.source}: the key in {keyfile} does not belong to the certificate in "
                f"{self.certfile} (the first one in the file; its issuers follow it)"
            )
        if reason == "EE_KEY_TOO_SMALL":
            return f"{self.source}: the key of {self.certfile} is too short to be safe"
        if had_password:
            return f"{self.source}: the key in {keyfile} can't be decrypted: wrong password?"
        return f"{self.source}: {self.certfile} or {keyfile} can't be used: {openssl_reason(error)}"


def read_certificates(path: str, source: str, files: CertificateFiles) -> list[str]:
    """Read the certificates (PEM) in a file.

    path    the file's path
    source  the setting that names it, for messages
    files   reads the file

    Raises ConfigError for a damaged certificate, or if there is none.
    """
    text = files.read(path, source).decode("latin-1")
    found = _CERTIFICATE.findall(text)
    if not found:
        raise ConfigError(f"{source}: {path} contains no certificate (PEM)")
    try:
        for pem in found:
            validity(ssl.PEM_cert_to_DER_cert(pem))
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{source}: {path} contains a damaged certificate") from error
    return [f"{pem}\n" for pem in found]


def date_warning(pem: str, path: str, now: datetime) -> str | None:
    """A warning about a certificate that has expired or is not valid yet; otherwise None.

    pem   the certificate
    path  its file, for the message
    now   the current time, with a time zone
    """
    begin, end = validity(ssl.PEM_cert_to_DER_cert(pem))
    if now > end:
        return f"the certificate in {path} expired on {end:%Y-%m-%d %H:%M} UTC"
    if now < begin:
        return f"the certificate in {path} is not valid before {begin:%Y-%m-%d %H:%M} UTC"
    return None


def valid_until(pem: str) -> datetime:
    """The time at which a certificate expires."""
    return validity(ssl.PEM_cert_to_DER_cert(pem))[1]


def validity(der: bytes) -> tuple[datetime, datetime]:
    """Read notBefore and notAfter of a certificate (DER, RFC 5280 section 4.1).

    The ssl module offers this only for a peer's certificate. Raises ValueError or IndexError if the
    certificate is damaged.
    """
    _, at, _ = _element(der, 0)  # Certificate
    _, at, _ = _element(der, at)  # TBSCertificate
    tag, _, end = _element(der, at)
    if tag == 0xA0:  # skip the version, which is optional
        _, _, end = _element(der, end)
    for _ in ("signature", "issuer"):
        _, _, end = _element(der, end)
    _, at, _ = _element(der, end)
    begin = _element(der, at)
    finish = _element(der, begin[2])
    return _time(der, begin), _time(der, finish)


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag, start and end of the DER element at an offset (X.690 section 8.1)."""
    tag, length = der[at], der[at + 1]
    at += 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[at : at + count], "big")
        at += count
    if at + length > len(der):
        raise ValueError("cut short")
    return tag, at, at + length


def _time(der: bytes, element: tuple[int, int, int]) -> datetime:
    tag, start, end = element
    text = der[start:end].decode("ascii")
    # UTCTime (tag 0x17) has two digits for the year, which mean 1950 to 2049 (RFC 5280 section
    # 4.1.2.5.1). GeneralizedTime has four.
    if tag == 0x17:
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)


def openssl_reason(error: ssl.SSLError) -> str:
    """OpenSSL's reason in readable form: "no certificate or crl found"."""
    # Some of the ssl module's errors have no reason.
    reason = getattr(error, "reason", None) or str(error)
    return reason.replace("_", " ").lower()


# --- for development ----------------------------------------------------------------------------


@functools.cache
def self_signed(hosts: tuple[str, ...]) -> bytes:
    """Make a temporary certificate and its key (PEM).

    hosts  the names and addresses for which it is valid

    The same hosts give the same certificate until the process ends. Raises ConfigError if trustme
    is not installed.
    """
    try:
        import trustme
    except ImportError as error:
        raise ConfigError(
            "self_signed needs the trustme library: pip install 'servo-server[dev-tls]'"
        ) from error
    issued = trustme.CA(organization_name="Servo, for development").issue_cert(*hosts)
    return bytes(issued.private_key_and_cert_chain_pem.bytes())


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a certificate and its key from memory. OpenSSL reads only files, so write one."""
    import tempfile  # imported here because it takes 5 ms and few servers need it

    descriptor, path = tempfile.mkstemp(prefix="servo-", suffix=".pem")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
