"""`servoctl unit`: the facts that it takes from a server's command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servo.cli import ctl, unit
from servo.cli.unit import made_by, make_all_units, make_unit, write_units
from servo.cli.unit_files import Unit
from servo.errors import ConfigError, UsageError

Make = Callable[..., Unit]
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a unit as in a directory that has a configuration file."""
    (tmp_path / "servo.toml").write_text('app = "shop:app"\nbind = ["127.0.0.1:8100"]\n')

    def make(*words: str, **options: Any) -> Unit:
        options = {"notify_reload": False, "run_as": "www-data", **options}
        return make_unit(words, start=tmp_path.resolve(), **options)

    return make


def test_the_configuration_file_counts(make: Make, tmp_path: Path) -> None:
    found = make(with_socket=True)
    assert (found.name, found.streams) == ("shop", ("127.0.0.1:8100",))
    assert found.directory == str(tmp_path.resolve())
    assert found.command[-2:] == ("--name", "shop")


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (("blog.wsgi:app",), "", "blog.wsgi"),
        (("blog:app", "--name", "my blog"), "", "my-blog"),
        (("blog:app",), "site", "site"),
    ],
)
def test_names(make: Make, words: tuple[str, ...], name: str, expected: str) -> None:
    found = make(*words, name=name)
    assert found.name == expected
    assert found.command.count("--name") == 1


def test_the_program(make: Make) -> None:
    assert make("/srv/app/bin/servo", "shop:app").command[:2] == ("/srv/app/bin/servo", "shop:app")
    program = make("servo", "shop:app").command
    assert os.path.isabs(program[0])
    assert program[0] in (str(Path(sys.executable).parent / "servo"), sys.executable)
    assert "shop:app" in program


def test_sockets(make: Make, tmp_path: Path) -> None:
    binds = ("-b", "localhost:80", "-b", ":81", "-b", "[::1]:82", "-b", "unix:s", "-b", "@a")
    found = make(*binds, with_socket=True)
    path = str(tmp_path.resolve() / "s")
    assert found.streams == ("127.0.0.1:80", "0.0.0.0:81", "[::1]:82", path, "@a")
    assert not found.low_port  # systemd binds it
    assert make(*binds, "--umask", "007", with_socket=True).socket_mode == 0o660
    for text, says in [("example.org:80", "an IP address"), ("fd://3", "not a descriptor")]:
        with pytest.raises(UsageError, match=says):
            make("-b", text, with_socket=True)
        assert make("-b", text).streams == ()


def test_a_low_port(make: Make) -> None:
    assert make("-b", ":80").low_port
    assert not make("-b", ":80", "--user", "nobody", run_as="").low_port  # it starts as root
    with pytest.raises(UsageError, match=r"can't bind port 80; .* from 1024 on"):
        make("-b", ":80", for_user=True)
    assert make("-b", ":0", for_user=True).low_port is False


def test_the_account(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make().run_as == "www-data"
    assert make("--user", "nobody", run_as="").run_as == ""
    assert make(for_user=True).run_as == ""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert make(run_as="").run_as == "nobody"


def test_files_that_the_server_writes(make: Make, tmp_path: Path) -> None:
    flags = ("--error-logfile", "/var/log/shop/e", "--access-logfile", "-", "-p", "/srv/run/pid")
    found = make(*flags, "--metrics-bind", "unix:m.sock")
    assert found.writable == ("/var/log/shop", "/srv/run", str(tmp_path.resolve()))
    assert make().writable == ()


def test_a_link_to_the_current_release(make: Make, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    link = tmp_path.resolve() / "current"
    link.symlink_to("one")
    found = make_unit(("shop:app",), start=link, run_as="www-data", notify_reload=False)
    assert found.command[-2:] == ("--chdir", str(link))


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("shop:app", "--wrokers", "2"), UsageError, "did you mean --workers"),
        (("shop:app", "-w", "many"), UsageError, "workers"),
        (("shop:app", "-c", "none.toml"), ConfigError, "none.toml"),
        (("shop:app", "--daemon"), UsageError, "leave --daemon out"),
    ],
)
def test_a_command_line_that_would_not_start(
    make: Make, words: tuple[str, ...], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make(*words)


def test_without_an_app_it_gives_an_example(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="servoctl unit --hardened -- myapp:app -w auto"):
        make_unit((), start=tmp_path)
    (tmp_path / "shop.py").write_text("app = 1\n")
    with pytest.raises(UsageError, match="servoctl unit --hardened -- shop:app -w 3"):
        make_unit(("-w", "3"), start=tmp_path)


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ("systemd 252 (252.38-1~deb12u1)\n+PAM", False),
        ("systemd 253.1 (253.1-1)", True),
        ("systemd 257", True),
        ("elogind", False),
        ("", False),
    ],
)
def test_the_version_of_systemd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, has: bool
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{version}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert unit._has_notify_reload() is has


def test_no_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unit._has_notify_reload() is False


APPS = '[apps.shop]\napp = "shop:app"\n[apps.api]\napp = "api:app"\nbind = "127.0.0.1:8001"\n'


def test_all_apps_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "apps.toml"
    file.write_text(APPS)
    found = make_all_units(file, ["-w", "2"], start=tmp_path, notify_reload=False)
    assert [each.name for each in found] == ["shop", "api"]
    assert found[1].command[1:] == ("-w", "2", "-c", str(file), "api")
    assert made_by([], {"source": file}) == ["servoctl", "unit", "--all", str(file)]


def test_all_files_of_a_directory(tmp_path: Path) -> None:
    for name in ("shop", "api"):
        (tmp_path / f"{name}.toml").write_text(f'app = "{name}:app"\n')
    found = make_all_units(tmp_path, [], start=tmp_path, notify_reload=False)
    assert [each.name for each in found] == ["api", "shop"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("workers = 2\n", {}, r"has no tables \[apps.NAME\]"),
        (APPS, {"name": "x"}, "--name can't be used with --all"),
        (APPS + 'proc_name = "shop"\n', {}, "two apps of the name shop"),
    ],
)
def test_what_are_not_several_apps(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    file = tmp_path / "apps.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        make_all_units(file, [], start=tmp_path, notify_reload=False, **options)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = ctl.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "unit", "--socket", "shop:app", "--user", "nobody")
    assert code == 0
    head = "# /etc/systemd/system/shop.service, made by:\n"
    assert out.startswith(f"{head}# servoctl unit --socket -- shop:app --user nobody\n\n[Unit]\n")
    assert "ListenStream=127.0.0.1:8000" in out
    assert err.startswith("next: systemctl daemon-reload && systemctl enable --now shop.service")
    # Options before the app are for the command, those after it for the server.
    code, out, err = run(capsys, "--name", "site", "unit", "--user", "--", "shop:app")
    assert out.startswith("# ~/.config/systemd/user/site.service, made by:\n")
    assert err.startswith("next: systemctl --user daemon-reload")
    code, out, err = run(capsys, "unit", "shop:app", "--wrokers", "1")
    assert (code, out) == (2, "")
    assert "did you mean --workers?" in err
    (tmp_path / "apps.toml").write_text(APPS)
    code, out, err = run(capsys, "unit", "--all", "apps.toml", "--user")
    assert code == 0
    assert "# servoctl unit --all apps.toml --user\n" in out
    assert "-c apps.toml api\n" in out
    assert err.rstrip().endswith("enable --now shop.service api.service")


def test_files_are_written_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("unit", "-o", str(tmp_path), "--socket", "shop:app")
    for _ in range(2):  # the same text may be there
        code, out, _ = run(capsys, *command)
        assert (code, out) == (
            0,
            f"wrote {tmp_path}/shop.service\nwrote {tmp_path}/shop.socket\n",
        )
    before = (tmp_path / "shop.service").read_text()
    code, _, err = run(capsys, *command, "-w", "3")
    assert (code, f"{tmp_path}/shop.service exists and differs" in err) == (2, True)
    assert (tmp_path / "shop.service").read_text() == before


def test_the_command_that_made_it() -> None:
    options = {"name": "a b", "for_user": True, "hardened": True, "with_socket": False}
    assert made_by(("x:app", "-w", "2"), options) == [
        *("servoctl", "unit", "--name", "a b", "--user", "--hardened", "--"),
        *("x:app", "-w", "2"),
    ]


def test_the_examples_are_what_it_writes(make: Make, tmp_path: Path) -> None:
    words = ("myapp:app", "-w", "auto")
    options = {"name": "servo", "run_as": "www-data", "with_socket": True, "hardened": True}
    (tmp_path / "servo.toml").unlink()
    found = make("/srv/app/.venv/bin/servo", *words, **options)
    found = replace(found, directory="/srv/app", in_home=False)  # as in the directory of the app
    write_units(found.files(), made_by(words, options), str(tmp_path), for_user=False)
    for name in ("servo.service", "servo.socket"):
        assert (EXAMPLES / name).read_text() == (tmp_path / name).read_text()
