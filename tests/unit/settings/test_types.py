"""The types of settings: reading, writing and refusing values."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servo.http.forwarded import FIELDS
from servo.settings import types
from servo.settings.gunicorn_compat import WorkerClass
from servo.settings.schema import SETTINGS
from servo.settings.sections.pools import PoolSettings, PoolTable
from servo.settings.sections.tls import CertReqs, HostTable
from servo.settings.setting import Setting
from servo.settings.statsd_address import StatsdAddress

some_text = st.text(min_size=1).map(str.strip).filter(bool)


def values_of(setting: Setting) -> st.SearchStrategy[Any]:
    """A strategy for the valid values of a setting."""
    kind = setting.type
    if isinstance(kind, types.WorkerCount):
        bounds = st.tuples(st.integers(1, 99), st.integers(0, 99))
        return bounds.map(lambda pair: f"{pair[0]}:{sum(pair)}") | st.integers(1, kind.maximum)
    if isinstance(kind, types.Whole):
        numbers = st.integers(min_value=kind.minimum, max_value=kind.maximum)
        return numbers | st.sampled_from(kind.keywords or (kind.minimum,))
    if isinstance(kind, types.Seconds):
        return st.floats(kind.minimum, allow_nan=False, allow_infinity=False)
    if isinstance(kind, types.PathOrFunction):
        return st.sampled_from(["/healthz", "/a/b?c=%20d", "shop.health:check", "a:B.c"])
    if isinstance(kind, types.Choice):
        return st.sampled_from(kind.options)
    if isinstance(kind, types.TextList):
        if "PATH|" in kind.metavar:
            return st.lists(st.sampled_from(["/start", "/a/b?c=%20d", "shop.models:load"]))
        if kind.valid == ", ".join(FIELDS):
            return st.lists(st.sampled_from(FIELDS))
        if kind.item is types.network:
            return st.lists(st.ip_addresses().map(str) | st.sampled_from(["*", "10.0.0.0/8"]))
        if setting.name == "control_allow":
            return st.lists(st.sampled_from(["root", "root:read", "0:full"]))
        if setting.name == "http_protocols":
            return st.lists(st.sampled_from(["h1", "h2"]), min_size=1)
        if setting.name == "response_headers":
            return st.lists(st.sampled_from(["A: b", "X-Frame-Options: DENY", "C: d, e: f"]))
        items = some_text.map("NAME={}".format) if kind.item is types.assignment else some_text
        return st.lists(items)
    if isinstance(kind, HostTable):
        hosts = st.sampled_from(["a.example", "*.example", "xn--bcher-kva.example"])
        return st.dictionaries(hosts, st.builds(lambda path: {"certfile": path}, some_text))
    if isinstance(kind, PoolTable):
        names = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True)
        memory = st.integers(min_value=0) | st.sampled_from(["25%", "100%"])
        pools = st.builds(
            PoolSettings,
            workers=st.integers(1, 200),
            initializer=st.sampled_from(["", "ml:load"]),
            timeout=st.floats(0, 1e6),
            max_memory=memory,
        )
        return st.dictionaries(names, pools)
    if isinstance(kind, types.Table):
        return st.dictionaries(some_text, some_text)
    if isinstance(kind, WorkerClass):
        return st.sampled_from(["auto", "sync", "thread", "async", "my.workers.Special"])
    for cls, strategy in {
        types.Switch: st.booleans(),
        CertReqs: st.integers(0, 2),
        StatsdAddress: st.sampled_from(["localhost", "10.0.0.1:8125", "[::1]:1", "unix:///run/s"]),
        types.Memory: st.integers(min_value=0) | st.integers(1, 100).map("{}%".format),
        types.Size: st.integers(min_value=0),
        types.Mode: st.integers(0, 0o7777),
        types.Account: st.integers(min_value=0),
        types.MountPoint: st.sampled_from(["", "/", "/app", "/café", "/caf%C3%A9/", "/a%20b"]),
    }.items():
        if isinstance(kind, cls):
            return strategy
    return some_text


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_value_survives_being_written_as_text(setting: Setting, data: st.DataObject) -> None:
    value = data.draw(values_of(setting))
    text = setting.type.to_text(value)
    assert setting.read(text, "the test", is_text=True) == value


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_default_is_a_valid_value(setting: Setting) -> None:
    if setting.default is None:
        assert setting.nullable
    else:
        text = setting.type.to_text(setting.default)
        assert setting.read(text, "the test", is_text=True) == setting.default
        assert setting.read(setting.default, "the test") == setting.default


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (types.Whole(), "0x10", 16),
        (types.Whole(), " 010 ", 10),
        (types.Whole(keywords=("auto",)), "AUTO", "auto"),
        (types.Seconds(), "1.5", 1.5),
        (types.Seconds(), "-0", 0.0),
        (types.Seconds(), "30s", 30.0),
        (types.Seconds(), " 5 M ", 300.0),
        (types.Seconds(), "2h", 7200.0),
        (types.Seconds(), "1h30m", 5400.0),
        (types.Seconds(), "1h 1.5s", 3601.5),
        (types.Seconds(), "300ms", 0.3),
        (types.Seconds(), "1d", 86400.0),
        (types.Size(), "10m", 10 << 20),
        (types.Size(), "64 KiB", 64 << 10),
        (types.Size(), "2gb", 2 << 30),
        (types.Memory(), "512M", 512 << 20),
        (types.Memory(), " 25 %", "25%"),
        (types.Switch(), "Yes", True),
        (types.Switch(), "0", False),
        (types.Mode(), "0022", 0o22),
        (types.Mode(), "0o22", 0o22),
        (types.Mode(), "0", 0),
        (types.TextList(), "a, b,,c ", ["a", "b", "c"]),
        (types.TextList(), '["a,b", "c"]', ["a,b", "c"]),
        (types.TextList(), "[::1]:80,[::1]:81", ["[::1]:80", "[::1]:81"]),
        (types.TextList(), "", []),
        (types.Table(), '{"a": {"b": 1}}', {"a": {"b": 1}}),
        (types.user(), "12", 12),
        (types.user(), "root", 0),
        (types.group(), "root", 0),
    ],
)
def test_text_is_read(kind: types.ValueType, text: str, value: object) -> None:
    read = kind.from_text(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (types.Whole(), 3, 3),
        (types.Whole(), "3", 3),
        (types.Seconds(), 3, 3.0),
        (types.Size(), "1k", 1024),
        (types.Size(), 7, 7),
        (types.Switch(), True, True),
        (types.Switch(), "off", False),
        (types.TextList(), "a,b", ["a,b"]),
        (types.TextList(), "", []),
        (types.TextList(), ("a", "b"), ["a", "b"]),
        (types.TextList(commas=True), "a,b", ["a", "b"]),
        (types.TextList(commas=True), ["a,b", "c"], ["a", "b", "c"]),
        (types.Choice(("on",), {"true": "on"}), True, "on"),
        (types.Directory(), Path("/tmp"), "/tmp"),
        (types.user(), os.geteuid(), os.geteuid()),
        (types.user(), pwd.getpwuid(0).pw_name, 0),
    ],
)
def test_objects_of_files_are_read(kind: types.ValueType, value: object, read: object) -> None:
    assert kind.from_value(value) == read


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (types.Text(), 3),
        (types.Whole(), "many"),
        (types.Whole(), ""),
        (types.Whole(), True),
        (types.Whole(), 1.0),
        (types.Whole(), -1),
        (types.Whole(1), "0"),
        (types.Whole(1, maximum=9), 10),
        (types.Seconds(), "nan"),
        (types.Seconds(), "inf"),
        (types.Seconds(), -0.1),
        (types.Seconds(), "-5m"),
        (types.Seconds(), "m"),
        (types.Seconds(), "5 minutes"),
        (types.Seconds(), "5m30"),
        (types.Seconds(), "9" * 400 + "s"),
        (types.Seconds(), True),
        (types.Seconds(), []),
        (types.Size(), "-1"),
        (types.Seconds(1.0), "0.9"),
        (types.PathOrFunction(), "healthz"),
        (types.PathOrFunction(), "/a b"),
        (types.PathOrFunction(), "/a#b"),
        (types.PathOrFunction(), "a-b:c"),
        (types.PathOrFunction(), "a:"),
        (types.Memory(), "0%"),
        (types.Memory(), "101%"),
        (types.Memory(), "1.5%"),
        (types.Memory(), "much"),
        (types.Size(), "1t"),
        (types.Size(), -1),
        (types.Size(), 1.5),
        (types.Switch(), "maybe"),
        (types.Switch(), 1),
        (types.Choice(("on", "off")), "maybe"),
        (types.Choice(("on", "off")), True),
        (types.TextList(), 3),
        (types.TextList(), ["a", 3]),
        (types.TextList(item=types.network), ["10.0.0.1/8"]),
        (types.TextList(item=types.network), ["somewhere"]),
        (types.TextList(item=types.assignment), ["NAME"]),
        (types.TextList(item=types.assignment), ["=value"]),
        (types.Table(), "[1]"),
        (types.Table(), "{"),
        (types.Table(), 3),
        (types.Table(of_text=True), {"a": 1}),
        (types.Mode(), "0888"),
        (types.Mode(), 0o10000),
        (types.user(), "nobody has this name"),
        (types.user(), -1),
        (types.user(), True),
    ],
)
def test_invalid_values_are_refused(kind: types.ValueType, value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        kind.from_value(value)


def test_files_and_directories_must_exist(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    types.Directory().check(".", tmp_path)
    types.File().check("file", tmp_path)
    types.Output().check("not there yet", tmp_path)
    with pytest.raises(ValueError, match="no such directory"):
        types.Directory().check("file", tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        types.File().check("other", tmp_path)


@pytest.mark.parametrize(
    "text", ["", "/", "/app", "/app/", "/a/b", "/café", "/caf%C3%A9", "/a%20b", "/a%3Fb", "/~a;b=c"]
)
def test_a_mount_point(text: str) -> None:
    assert types.MountPoint().from_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "app",
        "café/",
        "http://h/app",
        "/a b",
        "/a?b",
        "/a#b",
        "/a%",
        "/a%4",
        "/a%zz",
        "/a//b",
        "//a",
        "/a/../b",
        "/a/%2e%2E/b",
        "/./a",
        "/a%00b",
        "/a\x7f",
        "/a\tb",
        "/a%0Ab",
        "/caf%E9",
        "/caf\udce9",
    ],
)
def test_an_invalid_mount_point(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  Setting.read message it in words
        types.MountPoint().from_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "no colon",
        ": x",
        "a b: c",
        "ä: c",
        "Content-Length: 3",
        "connection: close",
        "Date: x",
        "a: b\r\nc: d",
        "a: b\x00",
        "a: \u20ac",
    ],
)
def test_fields_that_may_not_be_added_to_responses(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not NAME|^a field of"):
        SETTINGS["response_headers"].type.from_value([text])
