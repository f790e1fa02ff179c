"""Rules for the dashboard's page, which its strict Content-Security-Policy needs."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[2] / "servo" / "dashboard" / "static"
NOTICE = STATIC / "THIRD_PARTY.md"
VENDORED = ("uplot.js", "uplot.css")
OWN = sorted(
    path.name
    for path in STATIC.iterdir()
    if path.suffix in (".html", ".js", ".css") and path.name not in VENDORED
)
# They turn text into HTML or into code.
SINKS = re.compile(
    r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc)"
)


def read(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def test_there_is_something_to_check() -> None:
    assert {"index.html", "sign_in.html", "app.js", "style.css"} <= set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_nothing_comes_from_another_host(name: str) -> None:
    without_namespaces = read(name).replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+|data:|@import|url\(", without_namespaces) == []


@pytest.mark.parametrize("name", [name for name in OWN if name.endswith(".js")])
def test_no_text_is_read_as_html_or_code(name: str) -> None:
    assert SINKS.findall(read(name)) == []
    # The policy forbids a style attribute, which this would set.
    assert not re.search(r"setAttribute\(\s*[\"']style|cssText|\bstyle:", read(name))


@pytest.mark.parametrize("name", [name for name in OWN if name.endswith(".html")])
def test_no_script_or_style_is_inside_the_page(name: str) -> None:
    page = read(name)
    assert re.findall(r"\s(?:on\w+|style)=|<style", page) == []
    scripts = re.findall(r"<script[^>]* src=[^>]*></script>", page)
    assert len(scripts) == page.count("<script")


def test_every_file_that_a_page_names_exists() -> None:
    pages = [name for name in OWN if name.endswith(".html")]
    named = {found for name in pages for found in re.findall(r'"static/([\w.]+)"', read(name))}
    modules = [name for name in OWN if name.endswith(".js")]
    named |= {found for name in modules for found in re.findall(r'from "\./([\w.]+)"', read(name))}
    assert len(named) > 10
    assert [name for name in sorted(named) if not (STATIC / name).exists()] == []


@pytest.mark.parametrize("name", VENDORED)
def test_code_of_others_is_unchanged_and_has_its_licence(name: str) -> None:
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    notice = NOTICE.read_text(encoding="utf-8")
    assert f"{digest}  {name}" in notice
    assert "MIT License" in notice
