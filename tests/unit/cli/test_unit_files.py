"""The texts of systemd units, judged by systemd-analyze where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from servo.cli.unit_files import Unit, quoted

UNIT = Unit(
    name="shop",
    command=(sys.executable, "-m", "servo", "shop:app", "-e", "A=100 %", "--name", "shop"),
    directory="/",
    run_as="www-data",
)
VARIANTS = {
    "plain": UNIT,
    "hardened": replace(UNIT, hardened=True),
    "socket": replace(
        UNIT, hardened=True, streams=("127.0.0.1:80", "[::1]:80", "/run/a b.sock", "@x")
    ),
    "port": replace(UNIT, hardened=True, low_port=True),
    "root": replace(UNIT, hardened=True, run_as=""),
    "logs": replace(UNIT, hardened=True, writable=("/var/log/shop", "/srv/a b%", "/tmp/x")),
    "user": replace(UNIT, hardened=True, for_user=True, run_as="", in_home=True),
}
LIMIT = 4.0
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="no systemd-analyze here (Debian: apt-get install systemd)",
)


def values(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def analyze(
    directory: Path, *arguments: str, for_user: bool = False
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *(["--user"] if for_user else []), *arguments],
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_systemd
@pytest.mark.parametrize("unit", VARIANTS.values(), ids=VARIANTS)
def test_systemd_accepts_the_units(tmp_path: Path, unit: Unit) -> None:
    paths = []
    for name, text in unit.files().items():
        paths.append(str(tmp_path / name))
        (tmp_path / name).write_text(text)
    done = analyze(tmp_path, "verify", *paths, for_user=unit.for_user)
    assert (done.returncode, done.stderr) == (0, "")
    if unit.hardened:
        done = analyze(tmp_path, "security", "--offline=yes", paths[0])
        match = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
        assert match, done.stderr
        assert float(match[1]) <= LIMIT


def test_the_command_line_is_quoted() -> None:
    text = UNIT.files()["shop.service"]
    (command,) = values(text, "ExecStart")
    assert command == f'{sys.executable} -m servo shop:app -e "A=100 %%" --name shop'
    assert quoted("a") == "a"
    assert quoted("") == '""'
    assert quoted('a "b"\\c') == '"a \\"b\\"\\\\c"'
    assert quoted("$HOME;") == '"$$HOME;"'


@pytest.mark.parametrize(
    ("name", "directory"),
    [("shop", "servo-shop"), ("servo", "servo"), ("servo-shop", "servo-shop")],
)
def test_the_runtime_directory_is_one_that_servoctl_searches(name: str, directory: str) -> None:
    text = replace(UNIT, name=name).files()[f"{name}.service"]
    assert values(text, "RuntimeDirectory") == [directory]


def test_notify_reload_needs_no_command_for_a_reload() -> None:
    old, new = (replace(UNIT, notify_reload=each).files()["shop.service"] for each in (False, True))
    assert (values(old, "Type"), len(values(old, "ExecReload"))) == (["notify"], 1)
    assert (values(new, "Type"), values(new, "ExecReload")) == (["notify-reload"], [])


def test_capabilities() -> None:
    def bounding(unit: Unit) -> list[str]:
        return values(unit.files()["shop.service"], "CapabilityBoundingSet")

    assert bounding(VARIANTS["plain"]) == []
    assert bounding(VARIANTS["hardened"]) == [""]
    assert bounding(VARIANTS["port"]) == ["CAP_NET_BIND_SERVICE"]
    assert "CAP_SETUID" in bounding(VARIANTS["root"])[0]
    assert values(VARIANTS["root"].files()["shop.service"], "User") == []


def test_directories_that_the_service_writes_to() -> None:
    text = VARIANTS["logs"].files()["shop.service"]
    assert values(text, "ReadWritePaths") == ['-/var/log/shop "-/srv/a b%%"']
    assert values(text, "PrivateTmp") == ["yes"]
    text = replace(UNIT, directory="/tmp/shop").files()["shop.service"]
    assert values(text, "PrivateTmp") == ["no"]


def test_a_users_units() -> None:
    text = VARIANTS["user"].files()["shop.service"]
    assert values(text, "WantedBy") == ["default.target"]
    assert values(text, "User") == []
    assert values(text, "PrivateUsers") == ["yes"]
    assert values(text, "ProtectHome") == ["read-only"]


def test_a_socket_unit() -> None:
    files = replace(VARIANTS["socket"], socket_mode=0o660).files()
    assert list(files) == ["shop.service", "shop.socket"]
    assert values(files["shop.service"], "Requires") == ["shop.socket"]
    assert values(files["shop.socket"], "ListenStream") == list(VARIANTS["socket"].streams)
    assert values(files["shop.socket"], "SocketMode") == ["0660"]
