"""Certificate files, and messages about their errors."""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from authority import Authority, Files

from servo.errors import ConfigError
from servo.net.certificate_files import CertificateFiles
from servo.net.certificates import (
    KeyPair,
    date_warning,
    load_pem,
    read_certificates,
    self_signed,
    validity,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Files:
    return authority.issue("good")


def load(cert: Path, key: Path | None, password: bytes | None = None) -> list[str]:
    pair = KeyPair(str(cert), str(key) if key else None, lambda: password, "certfile")
    return pair.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), CertificateFiles())


def refusal(cert: Path, key: Path | None, password: bytes | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(cert, key, password)
    return str(caught.value)


def test_a_pair_is_loaded_and_its_certificate_returned(files: Files) -> None:
    (pem,) = load(files.cert, files.key)
    assert pem.strip() == files.cert.read_text().strip()


def test_one_file_may_hold_both(files: Files, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(files.key.read_bytes() + files.cert.read_bytes())
    assert len(load(both, None)) == 1


def test_issuers_follow_the_certificate(authority: Authority, files: Files, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(files.cert.read_bytes() + authority.path.read_bytes())
    leaf, issuer = load(chain, files.key)
    assert leaf.strip() == files.cert.read_text().strip()
    assert issuer.strip() == authority.path.read_text().strip()


def test_an_encrypted_key(authority: Authority) -> None:
    files = authority.issue("locked", password=b"s3cret")
    assert load(files.cert, files.key, b"s3cret")
    without = refusal(files.cert, files.key)
    assert "encrypted" in without
    assert "keyfile_password_file" in without
    wrong = refusal(files.cert, files.key, b"wrong")
    assert "wrong password" in wrong
    assert "s3cret" not in wrong
    assert "can't be" in refusal(files.cert, files.key, b"x" * 2000)


def test_an_error_names_the_file(authority: Authority, files: Files, tmp_path: Path) -> None:
    other = authority.issue("other")
    empty, damaged = tmp_path / "empty.pem", tmp_path / "damaged.pem"
    empty.write_bytes(b"")
    damaged.write_text(files.cert.read_text().replace("MII", "MIX", 1))
    missing = tmp_path / "missing.pem"

    for found, words in [
        (refusal(missing, files.key), ["missing.pem", "No such file"]),
        (refusal(files.cert, missing), ["missing.pem", "No such file"]),
        (refusal(tmp_path, files.key), [str(tmp_path), "directory"]),
        (refusal(empty, files.key), ["empty.pem", "no certificate"]),
        (refusal(files.key, files.key), ["good.key", "no certificate"]),
        (refusal(damaged, files.key), ["damaged.pem", "damaged"]),
        (refusal(files.cert, None), ["good.pem", "no private key", "keyfile"]),
        (refusal(files.cert, files.cert), ["good.pem", "no private key"]),
        (refusal(files.cert, other.key), ["other.key", "does not belong to the certificate"]),
    ]:
        assert all(word in found for word in words), found
        assert found.startswith("certfile: ") or "the key of certfile" in found


def test_a_key_that_is_cut_short(files: Files, tmp_path: Path) -> None:
    key = tmp_path / "cut.key"
    key.write_text("\n".join(files.key.read_text().splitlines()[:2]) + "\n")
    assert "cut.key can't be used" in refusal(files.cert, key)


def test_dates(authority: Authority) -> None:
    now = datetime.now(timezone.utc)
    files = authority.issue("dated", days=10, age_days=5)
    (pem,) = read_certificates(str(files.cert), "certfile", CertificateFiles())
    begin, end = validity(ssl.PEM_cert_to_DER_cert(pem))
    assert abs(begin - (now - timedelta(days=5))) < timedelta(minutes=5)
    assert abs(end - (now + timedelta(days=10))) < timedelta(minutes=5)
    assert date_warning(pem, "x.pem", now) is None
    assert "x.pem expired on" in str(date_warning(pem, "x.pem", end + timedelta(seconds=1)))
    assert "not valid before" in str(date_warning(pem, "x.pem", begin - timedelta(seconds=1)))


def test_dates_after_2049_have_another_form(authority: Authority) -> None:
    now = datetime.now(timezone.utc)
    files = authority.issue("late", days=365 * 40)
    (pem,) = read_certificates(str(files.cert), "certfile", CertificateFiles())
    _, end = validity(ssl.PEM_cert_to_DER_cert(pem))
    assert abs(end - (now + timedelta(days=365 * 40))) < timedelta(minutes=5)


def test_any_cut_of_a_certificate_is_refused(files: Files) -> None:
    der = ssl.PEM_cert_to_DER_cert(files.cert.read_text())
    for length in range(200):
        with pytest.raises((ValueError, IndexError)):
            validity(der[:length])


def test_a_throw_away_certificate_is_made_once() -> None:
    pem = self_signed(("localhost", "127.0.0.1"))
    assert self_signed(("localhost", "127.0.0.1")) is pem
    load_pem(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pem)


def test_without_trustme_a_throw_away_certificate_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trustme", None)
    with pytest.raises(ConfigError, match=r"servo-server\[dev-tls\]"):
        self_signed(("not.made.before.example",))
