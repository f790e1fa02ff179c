"""Certificate files that are read once and used from memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from servo.errors import ConfigError
from servo.net.certificate_files import CertificateFiles, stamp, stamps


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    path.write_bytes(b"one")
    files = CertificateFiles()
    assert files.read(str(path), "certfile") == b"one"
    path.write_bytes(b"two")
    assert files.read(str(path), "certfile") == b"one"
    assert files.contents == {str(path): b"one"}
    assert files.stamps.keys() == {str(path)}


def test_a_missing_file_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    files = CertificateFiles()
    with pytest.raises(ConfigError, match=r"certfile: can't read .*none.pem: No such file"):
        files.read(str(tmp_path / "none.pem"), "certfile")


def test_files_that_were_given_need_not_exist() -> None:
    assert CertificateFiles({"/none": b"given"}).read("/none", "certfile") == b"given"


def test_openssl_finds_the_bytes_that_were_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    path.write_bytes(b"one")
    files = CertificateFiles()
    files.read(str(path), "certfile")
    path.unlink()
    with files.names_for_openssl(str(path), str(path)) as names:
        assert [Path(name).read_bytes() for name in names] == [b"one", b"one"]
    assert not any(os.path.exists(name) for name in names)


def test_without_files_in_memory_openssl_reads_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    path = tmp_path / "a.pem"
    path.write_bytes(b"one")
    files = CertificateFiles()
    files.read(str(path), "certfile")
    with files.names_for_openssl(str(path)) as names:
        assert names == [str(path)]


def test_a_stamp_tells_a_change(tmp_path: Path) -> None:
    path, link = tmp_path / "a.pem", tmp_path / "link.pem"
    link.symlink_to(path)
    seen = [stamp(str(link))]
    for change in (
        lambda: path.write_bytes(b"one"),
        lambda: path.chmod(0o600),
        lambda: os.utime(path, (1, 1)),
        lambda: (tmp_path / "b.pem").write_bytes(b"one") and (tmp_path / "b.pem").replace(path),
    ):
        change()
        seen.append(stamp(str(link)))
        assert stamps([str(link)]) == {str(link): seen[-1]}
    assert len(set(seen)) == len(seen)


def test_a_digest_depends_on_paths_and_bytes() -> None:
    digests = {
        CertificateFiles(contents).digest()
        for contents in ({}, {"a": b"1"}, {"a": b"2"}, {"b": b"1"}, {"a": b"1", "b": b""})
    }
    assert len(digests) == 5
    assert CertificateFiles({"a": b"1", "b": b"2"}).digest() == (
        CertificateFiles({"b": b"2", "a": b"1"}).digest()
    )
