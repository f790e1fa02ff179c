"""A server's own control socket: made, described, made again, and removed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from servo.control import instances
from servo.control.client import ControlClient
from servo.control.endpoint import Endpoint, check_path, is_in_private_tmp
from servo.control.instances import Instance, InstanceError


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, because a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="servo-") as directory:
        yield Path(directory)


def serve(place: Path, name: str = "shop", path: str | None = None, mode: int = 0o600) -> Endpoint:
    endpoint = Endpoint(path, mode, shared=False)
    endpoint.announce(name, {"XDG_RUNTIME_DIR": str(place)})
    return endpoint


def test_a_server_is_found_and_leaves_nothing(place: Path) -> None:
    endpoint = serve(place)
    directory = place / "servo"
    found = instances.instances([directory])
    assert found == [Instance("shop", os.getpid(), endpoint.path)]
    assert Path(endpoint.path).name == f"shop-{os.getpid()}.sock"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(endpoint.path).st_mode) == 0o600
    endpoint.close()
    assert list(directory.iterdir()) == []
    assert instances.instances([directory]) == []


def test_two_of_one_name_and_pid_do_not_collide(place: Path) -> None:
    first, second = serve(place), serve(place)
    assert first.path != second.path
    assert len(instances.instances([place / "servo"])) == 2
    first.close()
    assert [each.socket for each in instances.instances([place / "servo"])] == [second.path]
    second.close()


def test_a_chosen_path(place: Path) -> None:
    endpoint = serve(place, path=str(place / "my.sock"), mode=0o660)
    assert endpoint.path == str(place / "my.sock")
    assert stat.S_IMODE(os.stat(endpoint.path).st_mode) == 0o660
    assert [each.socket for each in instances.instances([place / "servo"])] == [endpoint.path]
    with pytest.raises(InstanceError, match="belongs to a server that is running"):
        Endpoint(endpoint.path, 0o600, shared=False)
    endpoint.close()
    assert sorted(path.name for path in place.iterdir()) == ["servo"]
    assert list((place / "servo").iterdir()) == []


def test_a_stale_socket_at_a_chosen_path_is_taken_over(place: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(place / "my.sock"))
    left.close()
    endpoint = serve(place, path=str(place / "my.sock"))
    ControlClient(endpoint.path).close()
    endpoint.close()


def test_a_path_too_long_for_a_socket() -> None:
    for use in (partial(Endpoint, mode=0o600, shared=False), check_path):
        with pytest.raises(InstanceError, match="longer than a socket's path"):
            use("/tmp/" + "x" * 120)


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("gone", ["socket", "lock", "all"])
def test_removed_files_are_made_again(place: Path, chosen: bool, gone: str) -> None:
    endpoint = serve(place, path=str(place / "my.sock") if chosen else None)
    path, directory = Path(endpoint.path), place / "servo"
    assert endpoint.is_whole
    if gone != "lock":
        path.unlink()
    if gone != "socket":
        shutil.rmtree(directory)
    assert not endpoint.is_whole
    endpoint.renew()
    assert endpoint.is_whole
    assert endpoint.path == str(path)
    ControlClient(endpoint.path).close()
    assert [each.socket for each in instances.instances([directory])] == [endpoint.path]
    endpoint.close()
    assert [each for each in place.rglob("*") if not each.is_dir()] == []


def test_anothers_socket_in_our_place_stays(place: Path) -> None:
    endpoint = serve(place)
    os.unlink(endpoint.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(endpoint.path)
        assert not endpoint.is_whole
        endpoint.close()
        assert os.path.exists(endpoint.path)


def test_a_path_is_checked_without_making_a_file(place: Path) -> None:
    check_path(str(place / "my.sock"))
    assert list(place.iterdir()) == []
    with pytest.raises(InstanceError, match=r"my\.sock\.lock: No such file or directory"):
        check_path(str(place / "nowhere" / "my.sock"))


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_path_of_something_else(place: Path, kind: str) -> None:
    path, target = place / "my.sock", place / "target"
    if kind == "file":
        path.write_text("of use")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(target)
    text = r"my\.sock is there already, and no socket: remove it"
    with pytest.raises(InstanceError, match=text):
        check_path(str(path))
    with pytest.raises(InstanceError, match=text):
        Endpoint(str(path), 0o600, shared=False)
    assert os.path.lexists(path)
    assert not target.exists()
    assert kind != "file" or path.read_text() == "of use"


def test_a_chosen_path_is_bound_before_it_is_announced(place: Path) -> None:
    """A start must fail before the server detaches, and a daemon's pid isn't known until then."""
    endpoint = Endpoint(str(place / "my.sock"), 0o600, shared=False)
    ControlClient(endpoint.path).close()
    assert not (place / "servo").exists()
    sock = endpoint.announce("shop", {"XDG_RUNTIME_DIR": str(place)})
    assert sock is endpoint.sock
    assert len(instances.instances([place / "servo"])) == 1
    endpoint.close()


def test_a_server_without_a_path_has_no_socket_until_it_is_announced(place: Path) -> None:
    endpoint = Endpoint(None, 0o600, shared=False)
    assert (endpoint.path, endpoint.sock, endpoint.is_whole) == ("", None, False)
    endpoint.close()


@pytest.mark.parametrize(("shared", "modes"), [(False, (0o700, 0o600)), (True, (0o755, 0o644))])
def test_permission_bits_of_the_description(
    place: Path, shared: bool, modes: tuple[int, int]
) -> None:
    endpoint = Endpoint(None, 0o600, shared=shared)
    endpoint.announce("shop", {"XDG_RUNTIME_DIR": str(place)})
    lock = Path(endpoint.path).with_suffix(".lock")
    found = tuple(stat.S_IMODE(path.stat().st_mode) for path in (place / "servo", lock))
    assert found == modes
    endpoint.close()


def test_a_child_closes_its_copies_and_keeps_the_files(place: Path) -> None:
    """A child exits with its copies closed, and the server stays found."""
    endpoint = serve(place)
    pid = os.fork()
    if pid == 0:
        endpoint.close_in_child()
        os._exit(0 if endpoint.sock is not None and endpoint.sock.fileno() < 0 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert [each.socket for each in instances.instances([place / "servo"])] == [endpoint.path]
    ControlClient(endpoint.path).close()
    endpoint.close()


def test_a_child_that_closes_the_endpoint_removes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = serve(place)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        path = endpoint.path
        endpoint.close()
        assert os.path.exists(path)


def test_a_private_tmp_is_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "90 27 254:0 /tmp/systemd-private-1f-shop.service-x/tmp /tmp rw - ext4 /dev/vda rw\n"
        "odd line\n"
    )
    assert is_in_private_tmp("/tmp/servo-33/shop-7.sock", str(mounts))
    assert not is_in_private_tmp("/run/servo/shop-7.sock", str(mounts))
    assert not is_in_private_tmp("/tmpfile", str(mounts))
    mounts.write_text("27 1 254:0 / /tmp rw - tmpfs tmpfs rw\n")
    assert not is_in_private_tmp("/tmp/servo-33/shop-7.sock", str(mounts))
    assert not is_in_private_tmp("/tmp/servo-33/shop-7.sock", str(tmp_path / "absent"))


@pytest.mark.parametrize("chosen", [False, True])
def test_the_next_program_goes_on_with_the_socket(place: Path, chosen: bool) -> None:
    before = serve(place, path=str(place / "mine.sock") if chosen else None)
    environ = {"XDG_RUNTIME_DIR": str(place)}
    state = json.loads(json.dumps(before.to_state(lambda fd: fd)))
    after = Endpoint.from_state(state, os.dup, environ)
    before.close_in_child()
    sock = after.announce("shop", environ)
    assert after.is_whole
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(after.path)
        sock.accept()[0].close()
    (found,) = instances.instances([place / "servo"])
    assert found.socket == after.path == before.path
    # Its files are made again, and removed at the end, as ever.
    os.unlink(after.path)
    assert not after.is_whole
    after.renew()
    assert after.is_whole
    after.close()
    assert instances.instances([place / "servo"]) == []
    assert not os.path.exists(after.path)
