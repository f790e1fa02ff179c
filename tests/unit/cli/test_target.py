"""The server that a `servoctl` command is for, and the options that choose it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from servo.cli import target
from servo.cli.target import Target, target_of, target_options
from servo.control import instances
from servo.control.client import NoAnswer, NoSuchInstance
from servo.control.instances import Instance, Lock
from servo.errors import UsageError

SHOP = Instance("shop", 7, "/run/shop-7.sock")
TWIN = Instance("shop", 8, "/run/shop-8.sock")
BLOG = Instance("blog", 9, "/run/blog-9.sock")


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[Instance]:
    """The servers that the search finds."""
    found: list[Instance] = []
    monkeypatch.setattr(target, "running_servers", lambda: found)
    monkeypatch.setattr(instances, "other_users_directories", list)
    return found


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only runtime directory that is searched; its path is short, as a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="servo-") as name:
        monkeypatch.setattr(instances, "search_directories", lambda _environ, _uid: [Path(name)])
        monkeypatch.setattr(instances, "other_users_directories", list)
        yield Path(name)


def test_the_users_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        instances, "search_directories", lambda _environ, uid: asked.append(uid) or []
    )
    assert target.running_servers() == []
    assert asked == [os.geteuid()]


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (Target(name="blog"), BLOG),
        (Target(pid=7), SHOP),
        (Target(name="shop", pid=8), TWIN),
        (Target(socket="/some/where"), Instance("", 0, "/some/where")),
    ],
)
def test_a_server_is_found(running: list[Instance], chosen: Target, found: Instance) -> None:
    running += [SHOP, TWIN, BLOG]
    assert chosen.find() == found


def test_the_only_server_need_not_be_chosen(running: list[Instance]) -> None:
    running.append(BLOG)
    assert Target().find() == BLOG


def test_all_servers(running: list[Instance]) -> None:
    with pytest.raises(NoSuchInstance):
        Target(every=True).find_all()
    running += [BLOG, SHOP, TWIN]
    assert Target(every=True).find_all() == [BLOG, SHOP, TWIN]
    assert Target(name="shop", every=True).find_all() == [SHOP, TWIN]
    for wrong in (Target(pid=7, every=True), Target(socket="/some/where", every=True)):
        with pytest.raises(UsageError):
            wrong.find_all()
    assert Target(name="blog", instance=TWIN).find() == TWIN


def test_other_users_servers_come_last(
    running: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Instance("shop", 10, "/run/user/1000/servo/shop-10.sock", 1000)
    monkeypatch.setattr(instances, "instances", lambda _places: [other])
    running.append(SHOP)
    assert target.all_servers() == [SHOP, other]
    assert Target().find() == Target(name="shop").find() == SHOP
    assert Target(pid=10).find() == other
    running.clear()
    assert Target().find() == other


def test_several_servers_match(running: list[Instance]) -> None:
    running += [SHOP, TWIN, BLOG]
    with pytest.raises(UsageError) as caught:
        Target().find()
    text = "several servers are running; choose one with --name, --pid or --socket:\n"
    assert str(caught.value) == text + target.instance_table(running)
    with pytest.raises(UsageError) as caught:
        Target(name="shop").find()
    text = "several servers are named shop; choose one with --pid or --socket:\n"
    assert str(caught.value) == text + target.instance_table([SHOP, TWIN])


def test_no_server_matches(running: list[Instance]) -> None:
    with pytest.raises(NoSuchInstance, match="no server of this user is running"):
        Target(name="shop").find()
    running.append(BLOG)
    with pytest.raises(NoSuchInstance) as caught:
        Target(name="shop", pid=9).find()
    text = "no server named shop with pid 9 is running; running are:\n"
    assert str(caught.value) == text + target.instance_table([BLOG])


def test_a_connection(directory: Path) -> None:
    path = str(directory / "shop.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with Target(socket=path, timeout_s=0.5).connect() as client:
            assert client.server_pid == os.getpid()


def test_a_live_server_whose_socket_is_gone(directory: Path) -> None:
    lock = Lock(directory / "shop-7.lock")
    assert lock.acquire()
    lock.write({"name": "shop", "pid": 7, "socket": str(directory / "shop-7.sock")}, 0o600)
    with pytest.raises(NoAnswer, match=r"shop \(pid 7\) does not answer at its socket"):
        Target().connect()
    with pytest.raises(NoSuchInstance, match="does not exist"):
        Target(socket=str(directory / "other.sock")).connect()
    lock.release()


def parse(*arguments: str) -> Target:
    """Parse a command line of a group with one command, as `servoctl` does."""

    @click.group()
    @target_options
    @click.pass_context
    def group(context: click.Context, /, **options: Any) -> None:
        context.obj = target_of(options)

    @group.command("status")
    @click.option("--other")
    @target_options
    def status(**options: Any) -> Target:
        chosen = target_of(options)
        assert options == {"other": None}
        return chosen

    result = group.main(list(arguments), standalone_mode=False)
    assert isinstance(result, Target)
    return result


def test_options_stand_before_or_after_the_command() -> None:
    expected = Target(name="shop", pid=7, json=True, timeout_s=0.5)
    assert parse("-n", "shop", "-p", "7", "--json", "--timeout", "0.5", "status") == expected
    assert parse("status", "-n", "shop", "-p", "7", "--json", "--timeout", "0.5") == expected
    assert parse("-n", "shop", "--json", "status", "-p", "7", "--timeout", "0.5") == expected


def test_an_option_after_the_command_wins() -> None:
    assert parse("-n", "shop", "-s", "/a", "status", "-n", "blog") == Target(
        name="blog", socket="/a"
    )
    assert parse("status") == Target()


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    target.print_json({"text": "two\nlines"})
    assert capsys.readouterr().out == '{"text": "two\\nlines"}\n'
