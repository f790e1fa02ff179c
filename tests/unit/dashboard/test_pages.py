"""The files of the page."""

from __future__ import annotations

from pathlib import Path

from servo.dashboard.pages import read_files


def test_pages_and_files_have_their_types(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>")
    (tmp_path / "app.js").write_text("1")
    (tmp_path / "LICENSE").write_text("free")
    files = read_files(tmp_path)
    assert set(files) == {"index.html", "static/app.js"}
    assert files["index.html"].type == "text/html; charset=utf-8"
    assert files["static/app.js"].data == b"1"
    (tmp_path / "app.js").write_text("2")
    assert read_files(tmp_path)["static/app.js"].etag != files["static/app.js"].etag


def test_the_package_has_its_pages() -> None:
    assert {"index.html", "sign_in.html"} <= set(read_files())
