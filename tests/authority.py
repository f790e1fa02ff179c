"""Certificates for the tests: an authority, and files in an operator's layout."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)


@dataclass(frozen=True)
class Files:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--certfile", str(self.cert), "--keyfile", str(self.key))


class Authority:
    """Issues certificates into a directory."""

    def __init__(self, directory: Path, name: str = "Test") -> None:
        self.directory = directory
        self.ca = trustme.CA(organization_name=name)
        self.path = directory / f"{name}-ca.pem"
        self.ca.cert_pem.write_to_path(str(self.path))

    def issue(
        self,
        name: str,
        *hosts: str,
        common_name: str | None = None,
        password: bytes | None = None,
        days: int = 30,
        age_days: int = 0,
    ) -> Files:
        """A certificate, valid from `age_days` ago until `days` from now."""
        now = datetime.datetime.now(datetime.timezone.utc)
        issued = self.ca.issue_cert(
            *(hosts or ("localhost", "127.0.0.1")),
            common_name=common_name,
            not_before=now - datetime.timedelta(days=age_days),
            not_after=now + datetime.timedelta(days=days),
        )
        files = Files(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        files.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key = issued.private_key_pem.bytes()
        files.key.write_bytes(encrypted(key, password) if password else key)
        return files

    def client_context(self, certificate: Files | None = None) -> ssl.SSLContext:
        """What a client uses that trusts this authority, and may show a certificate."""
        context = ssl.create_default_context(cafile=str(self.path))
        if certificate is not None:
            context.load_cert_chain(certificate.cert, certificate.key)
        return context


def encrypted(key: bytes, password: bytes) -> bytes:
    return load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password)
    )
