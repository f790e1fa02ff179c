"""Certificates from the arbiter."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from authority import Authority, Files
from tls_pair import make_test_tls, tls_settings

from servo.ipc.messages import CertificateFile
from servo.net.tls import TLS
from servo.settings.sources import Settings
from servo.workers.certificate_receiver import CertificateReceiver

PATHS = {"certfile": "/nowhere/cert", "keyfile": "/nowhere/key"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return tls_settings(tmp_path, **PATHS)


@pytest.fixture
def tls(authority: Authority) -> TLS:
    files = authority.issue("old")
    return make_test_tls(authority.directory, certfile=files.cert, keyfile=files.key)


def messages(cert: Files, key: Files) -> list[CertificateFile]:
    return [
        CertificateFile(PATHS["certfile"], cert.cert.read_text("latin-1"), False),
        CertificateFile(PATHS["keyfile"], key.key.read_text("latin-1"), True),
    ]


def test_the_last_file_completes_the_set(
    authority: Authority, settings: Settings, tls: TLS
) -> None:
    receiver = CertificateReceiver(settings, tls)
    for name in ("new", "newer"):
        files = authority.issue(name)
        before = tls.digest
        assert [receiver.take(message) for message in messages(files, files)] == [False, True]
        assert tls.digest != before


def test_files_that_cant_be_used_change_nothing(
    authority: Authority, settings: Settings, tls: TLS, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = CertificateReceiver(settings, tls)
    one, two = authority.issue("one"), authority.issue("two")
    before = tls.digest
    with caplog.at_level(logging.ERROR, "servo.error"):
        assert not any(receiver.take(message) for message in messages(one, two))
    assert "does not belong to the certificate" in caplog.text
    assert tls.digest == before
    assert [receiver.take(message) for message in messages(two, two)] == [False, True]


def test_a_file_that_did_not_come_is_read_from_the_disk(
    authority: Authority, settings: Settings, tls: TLS, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = CertificateReceiver(settings, tls)
    files = authority.issue("one")
    with caplog.at_level(logging.ERROR, "servo.error"):
        assert not receiver.take(messages(files, files)[1])
    assert "can't read /nowhere/cert" in caplog.text


def test_a_worker_without_tls_takes_none(authority: Authority, settings: Settings) -> None:
    receiver = CertificateReceiver(settings, None)
    files = authority.issue("one")
    assert not any(receiver.take(message) for message in messages(files, files))
