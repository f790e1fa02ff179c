"""The arbiter's side of certificates that change on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, Files
from tls_pair import tls_settings

from servo.arbiter.certificate_renewal import CertificateRenewal
from servo.arbiter.generations import Generations
from servo.arbiter.limit import CodeLimit
from servo.ipc.messages import CertificateFile, Message
from servo.settings.sources import Settings

pytestmark = pytest.mark.usefixtures("untouched_logging")


class World:
    """A server with one generation, whose time moves a second at a time."""

    def __init__(self, settings: Settings) -> None:
        self.generations = Generations(settings, lambda: settings, CodeLimit())
        self.tls = self.generations.read_certificates()
        self.sent: list[tuple[int, Message]] = []
        self.renewal = CertificateRenewal(
            self.generations, lambda generation, message: self.sent.append((generation, message))
        )
        self.now = 100.0

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.renewal.tick(self.now)
            self.now += 1


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def files(authority: Authority) -> Files:
    return authority.issue("site")


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "servo.error")


def settings_for(files: Files, hook: Any = None, **values: Any) -> Settings:
    return tls_settings(files.cert.parent, hook, certfile=files.cert, keyfile=files.key, **values)


def test_files_that_change_are_sent_to_the_workers(
    authority: Authority, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(settings_for(files))
    assert world.tls is not None
    world.run(40)
    assert not world.sent
    authority.issue("site")
    before = world.tls.digest
    world.run(20)
    assert world.tls.digest != before
    first, last = world.sent
    assert first == (1, CertificateFile(str(files.cert), files.cert.read_text(), False))
    assert last == (1, CertificateFile(str(files.key), files.key.read_text(), True))
    assert "new connections get the certificate in" in caplog.text
    world.run(40)
    assert len(world.sent) == 2


def test_a_key_that_comes_a_moment_later_is_no_error(
    authority: Authority, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(settings_for(files, certfile_watch=1))
    new = authority.issue("new")
    world.run(2)
    new.cert.replace(files.cert)
    world.run(4)
    new.key.replace(files.key)
    world.run(4)
    assert len(world.sent) == 2
    assert "ERROR" not in caplog.text


def test_a_pair_that_does_not_match_is_logged_once_and_left(
    authority: Authority, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(settings_for(files, certfile_watch=1))
    assert world.tls is not None
    before = world.tls.digest
    authority.issue("other").key.replace(files.key)
    world.run(30)
    assert caplog.text.count("does not belong to the certificate") == 1
    files.cert.unlink()
    world.run(30)
    assert caplog.text.count("No such file") == 1
    assert world.tls.digest == before
    assert not world.sent
    authority.issue("site")
    world.run(5)
    assert len(world.sent) == 2


@pytest.mark.parametrize("preload", [False, True])
def test_files_for_workers_of_a_mold(authority: Authority, files: Files, preload: bool) -> None:
    world = World(settings_for(files, certfile_watch=1, preload_app=preload))
    world.run(3)
    assert world.renewal.files_for(1) == []
    authority.issue("site")
    world.run(5)
    sent = [message for _, message in world.sent]
    assert len(sent) == 2
    assert world.renewal.files_for(1) == (sent if preload else [])
    world.generations.drop(1)
    world.run(1)
    assert world.renewal.files_for(1) == []


def test_a_touched_file_is_no_news(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    world = World(settings_for(files, certfile_watch=1))
    world.run(3)
    files.cert.touch()
    world.run(5)
    assert not world.sent
    assert not caplog.text


def test_zero_means_never(authority: Authority, files: Files) -> None:
    world = World(settings_for(files, certfile_watch=0))
    authority.issue("site")
    world.run(60)
    assert not world.sent


def test_files_of_a_hook_take_a_reload(
    authority: Authority, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    def ssl_context(config: Any, factory: Any) -> Any:
        return factory()

    world = World(settings_for(files, ssl_context, certfile_watch=1))
    authority.issue("site")
    world.run(20)
    assert not world.sent
    assert caplog.text.count("effect at the next reload: send HUP") == 1


def test_a_generation_that_is_gone_is_not_looked_at(authority: Authority, files: Files) -> None:
    world = World(settings_for(files, certfile_watch=1))
    world.run(2)
    world.generations.drop(1)
    authority.issue("site")
    world.run(10)
    assert not world.sent


def test_plain_http_has_nothing_to_watch(tmp_path: Path) -> None:
    world = World(tls_settings(tmp_path))
    world.run(30)
    assert not world.sent


def test_a_refork_has_the_same_contexts(authority: Authority, files: Files) -> None:
    world = World(settings_for(files, preload_app=True))
    world.run(1)
    first = authority.issue("other")
    files.cert.write_bytes(first.cert.read_bytes())
    files.key.write_bytes(first.key.read_bytes())
    world.run(120)
    assert {generation for generation, _ in world.sent} == {1}
    world.generations.copy(1, 2)
    world.renewal.copy(1, 2)
    assert world.renewal.files_for(2) == world.renewal.files_for(1) != []
    second = authority.issue("third")
    files.cert.write_bytes(second.cert.read_bytes())
    files.key.write_bytes(second.key.read_bytes())
    world.sent.clear()
    world.run(120)
    assert {generation for generation, _ in world.sent} == {1, 2}
    assert world.renewal.files_for(2) == [message for _, message in world.sent[-2:]]
