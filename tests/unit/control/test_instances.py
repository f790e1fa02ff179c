"""Running servers are found by their locks, not by their pids."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from servo.control import instances
from servo.control.client import ControlClient
from servo.control.endpoint import Endpoint
from servo.control.instances import InstanceError, Lock


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, because a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="servo-") as directory:
        yield Path(directory)


def environ(place: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(place)}


def serve(place: Path, name: str = "shop", path: str | None = None, mode: int = 0o600) -> Endpoint:
    endpoint = Endpoint(path, mode, shared=False)
    endpoint.announce(name, environ(place))
    return endpoint


def test_files_of_a_killed_server_are_removed(place: Path) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            serve(place)
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    directory = place / "servo"
    assert [each.pid for each in instances.instances([directory])] == [pid]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(list(directory.iterdir())) == 2
    assert instances.instances([directory]) == []
    assert list(directory.iterdir()) == []


def test_a_living_pid_does_not_make_a_dead_server_live(place: Path) -> None:
    """In containers every arbiter is PID 1: a file with the pid of a live process may be stale."""
    directory = place / "servo"
    directory.mkdir()
    (directory / "shop-1.lock").write_text('{"name": "shop", "pid": 1, "socket": "/nowhere"}')
    assert instances.instances([directory]) == []
    assert list(directory.iterdir()) == []


def test_a_server_that_just_starts_is_not_listed_nor_removed(place: Path) -> None:
    lock = Lock(place / "shop-7.lock")
    assert lock.acquire()
    assert instances.instances([place]) == []
    assert lock.path.exists()
    lock.release()


def test_files_that_are_no_locks_are_left_alone(place: Path) -> None:
    (place / "notes.txt").write_text("keep")
    (place / "dangling.lock").symlink_to(place / "nowhere")
    assert instances.instances([place, place / "absent"]) == []
    assert (place / "notes.txt").exists()


def test_a_stale_lock_does_not_have_any_file_removed(place: Path) -> None:
    precious = place / "precious"
    precious.write_text("keep")
    text = f'{{"name": "shop", "pid": 1, "socket": "{precious}"}}'
    (place / "shop-1.lock").write_text(text)
    assert instances.instances([place]) == []
    assert precious.exists()


def test_files_that_can_not_be_examined(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files may be in place, so nothing is made again, and closing doesn't fail."""
    endpoint = serve(place)

    def fails(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", fails)
        patch.setattr(Path, "lstat", fails)
        assert endpoint.is_whole
        assert not Lock(place / "other.lock").is_in_place
        with pytest.raises(InstanceError, match="Permission denied"):
            Lock(place / "other.lock").acquire()
        endpoint.close()
    lock = Lock(Path(endpoint.path).with_suffix(".lock"))
    assert lock.acquire()  # its file stayed, the lock did not
    lock.release()


def test_a_file_system_without_locks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This must be an error: if it meant "locked by another", `new_lock` would never end."""

    def fails(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(instances.fcntl, "flock", fails)
    with pytest.raises(InstanceError, match="No locks available"):
        instances.new_lock(place, "shop", 1)


def test_a_directory_that_can_not_be_examined(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat_of = os.stat

    def fails(path: str | Path, *args: object, **options: object) -> object:
        if str(path) == str(place / "theirs"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat_of(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", fails)
    places = [place / "theirs" / "servo", place / "servo"]
    monkeypatch.setattr(instances, "directories", lambda _environ, _uid: places)
    assert instances.make_directory({}, os.getuid()) == place / "servo"


def test_a_disk_that_takes_no_description(place: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(InstanceError, match="File too large"):
            serve(place)
        assert list((place / "servo").iterdir()) == []
        chosen = serve(place, path=str(place / "my.sock"))  # its users know the path
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ControlClient(chosen.path).close()
    chosen.close()


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("shop", "shop"),
        ("myapp:app", "myapp-app"),
        ("../../etc/passwd", "etc-passwd"),
        ("x" * 200, "x" * 48),
        ("ünïcode app", "n-code-app"),
        ("///", "servo"),
    ],
)
def test_names_of_files(name: str, safe: str) -> None:
    assert instances.safe_name(name) == safe


def test_where_files_go() -> None:
    places = instances.directories({"XDG_RUNTIME_DIR": "/run/user/7"}, 7)
    assert list(map(str, places)) == ["/run/user/7/servo", "/run/servo", "/tmp/servo-7"]
    assert instances.directories({"XDG_RUNTIME_DIR": "relative"}, 7)[0].is_absolute()


def test_the_directory_of_a_systemd_service_comes_first() -> None:
    values = {"XDG_RUNTIME_DIR": "/run/user/7", "RUNTIME_DIRECTORY": "/run/servo-shop"}
    assert str(instances.directories(values, 7)[0]) == "/run/servo-shop"
    # Of several, only those where servoctl searches.
    values["RUNTIME_DIRECTORY"] = "/run/shop:/run/servo:relative/servo"
    places = instances.directories(values, 7)
    assert list(map(str, places)) == ["/run/servo", "/run/user/7/servo", "/tmp/servo-7"]
    values["RUNTIME_DIRECTORY"] = "/run/supervisor"
    assert str(instances.directories(values, 7)[0]) == "/run/user/7/servo"


def test_a_server_in_a_service_is_found(place: Path) -> None:
    values = {**environ(place), "RUNTIME_DIRECTORY": str(place / "servo-shop")}
    endpoint = Endpoint(None, 0o600, shared=False)
    endpoint.announce("shop", values)
    assert Path(endpoint.path).parent == place / "servo-shop"
    # servoctl has none of the service's variables.
    searched = instances.search_directories(environ(place), os.geteuid())
    # Leave out /run/servo and others: this user may run a server.
    own = [each for each in searched if each.is_relative_to(place)]
    assert [each.socket for each in instances.instances(own)] == [endpoint.path]
    endpoint.close()


@pytest.fixture
def service(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of another user's service, where a server of that user runs."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give files away")
    monkeypatch.setattr(instances, "SERVICES", place)
    directory = place / "servo-shop"
    directory.mkdir()
    lock = Lock(directory / "shop-7.lock")
    assert lock.acquire()
    lock.write({"name": "shop", "pid": 7, "socket": str(directory / "shop-7.sock")}, 0o600)
    for path in (directory, lock.path):
        os.chown(path, 65534, -1)
    yield directory
    lock.release()


def test_root_finds_the_servers_of_services(
    service: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(service / "shop-7.sock")
    assert instances.instances([service]) == [instances.Instance("shop", 7, path, 65534)]
    service.chmod(0o777)  # now anybody can have made the files in it
    assert instances.instances([service]) == []
    service.chmod(0o755)
    place.chmod(0o777)
    assert instances.instances([service]) == []
    place.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 60_001)
    assert instances.instances([service]) == []


def test_root_believes_a_service_only_its_own_sockets(service: Path, place: Path) -> None:
    """Its user may have written anything into the directory."""
    lock = service / "shop-7.lock"
    os.mkfifo(service / "fifo.lock")  # opening it must not wait
    (service / "link.lock").symlink_to(lock)
    os.chown(service / "fifo.lock", 65534, -1)
    assert len(instances.instances([service])) == 1
    lock.write_text(f'{{"name": "shop", "pid": 7, "socket": "{place}/docker.sock"}}')
    assert instances.instances([service]) == []
    lock.write_text(f'{{"name": "shop", "pid": 7, "socket": "{service}/shop-7.sock"}}')
    assert len(instances.instances([service])) == 1
    os.chown(lock, 60_001, -1)
    assert instances.instances([service]) == []


@pytest.fixture(params=["run", "tmp"])
def others_directory(
    request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The runtime directory of user 60001, in /run/user or in /tmp."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give files away")
    users, temporary = place / "users", place / "temporary"
    for path in (users, temporary, users / "root", temporary / "servo-x", temporary / "servo-0"):
        path.mkdir()
    monkeypatch.setattr(instances, "USERS", users)
    monkeypatch.setattr(instances, "TEMPORARY", temporary)
    directory = temporary / "servo-60001"
    if request.param == "run":
        (users / "60001").mkdir()
        os.chown(users / "60001", 60_001, -1)
        directory = users / "60001" / "servo"
    directory.mkdir()
    os.chown(directory, 60_001, -1)
    return directory


def test_root_finds_the_servers_of_other_users(
    others_directory: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock(others_directory / "shop-7.lock")
    assert lock.acquire()
    path = str(others_directory / "shop-7.sock")
    lock.write({"name": "shop", "pid": 7, "socket": path}, 0o600)
    assert instances.other_users_directories() == [others_directory]
    assert instances.instances([others_directory]) == []  # the lock file is root's
    os.chown(lock.path, 60_001, -1)
    found = [instances.Instance("shop", 7, path, 60_001)]
    assert instances.instances([others_directory]) == found
    # No file of another user's dead server is removed.
    lock.close_in_child()
    assert instances.instances([others_directory]) == []
    assert lock.path.exists()
    monkeypatch.setattr(os, "geteuid", lambda: 60_002)
    assert instances.other_users_directories() == []


def test_root_does_not_believe_a_directory_of_a_third_user(others_directory: Path) -> None:
    others_directory.chmod(0o777)
    assert instances.other_users_directories() == []
    others_directory.chmod(0o755)
    os.chown(others_directory, 60_002, -1)
    assert instances.other_users_directories() == []
    os.chown(others_directory, 60_001, -1)
    assert instances.other_users_directories() == [others_directory]
    others_directory.rename(others_directory.parent / "away")
    others_directory.symlink_to(others_directory.parent / "away")
    assert instances.other_users_directories() == []


def test_a_directory_that_another_user_made_is_not_used(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = place / "real"
    real.mkdir()
    link = place / "servo"
    link.symlink_to(real)
    monkeypatch.setattr(instances, "directories", lambda _environ, _uid: [link])
    with pytest.raises(InstanceError, match="not a directory of user"):
        instances.make_directory({}, os.getuid())


def test_a_directory_that_others_can_write_to_is_closed(place: Path) -> None:
    directory = place / "servo"
    directory.mkdir()
    directory.chmod(0o777)
    assert instances.make_directory(environ(place), os.getuid()) == directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_directory_that_others_can_write_to_is_not_trusted(place: Path) -> None:
    """Anybody can make /tmp/servo-0 and a lock file in it that names a live socket of root's."""
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(place / "live.sock"))
        live.listen()
        directory = place / "servo-0"
        directory.mkdir()
        text = f'{{"name": "shop", "pid": 1, "socket": "{place}/live.sock"}}'
        (directory / "shop-1.lock").write_text(text)
        directory.chmod(0o777)
        assert instances.instances([directory]) == []
        assert (place / "live.sock").exists()
        assert (directory / "shop-1.lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
@pytest.mark.parametrize("whose", ["directory", "lock"])
def test_files_of_another_user_are_ignored(place: Path, whose: str) -> None:
    directory = place / "servo"
    directory.mkdir()
    lock = Lock(directory / "shop-7.lock")
    assert lock.acquire()
    lock.write({"name": "shop", "pid": 7, "socket": str(directory / "shop-7.sock")}, 0o644)
    assert len(instances.instances([directory])) == 1
    os.chown(directory if whose == "directory" else lock.path, 65534, -1)
    assert instances.instances([directory]) == []
    lock.release()


def test_only_a_dead_socket_beside_its_lock_is_removed(place: Path) -> None:
    directory = place / "servo"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as elsewhere:
        live.bind(str(directory / "live.sock"))
        live.listen()
        elsewhere.bind(str(place / "dead.sock"))
        elsewhere.close()
        for name, path in (("a", directory / "live.sock"), ("b", place / "dead.sock")):
            text = f'{{"name": "{name}", "pid": 1, "socket": "{path}"}}'
            (directory / f"{name}.lock").write_text(text)
        assert instances.instances([directory]) == []
        assert (directory / "live.sock").exists()
        assert (place / "dead.sock").exists()


def test_a_name_is_printable(place: Path) -> None:
    endpoint = serve(place, name="a\x1b[2J\nb")
    (found,) = instances.instances([place / "servo"])
    assert found.name == r"a\x1b[2J\nb"
    endpoint.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_the_runtime_directory_of_another_user_is_not_used(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `su`, $XDG_RUNTIME_DIR is the caller's, who could rename what root makes there."""
    others = place / "run"
    others.mkdir()
    os.chown(others, 65534, -1)
    monkeypatch.setattr(instances, "directories", lambda _environ, _uid: [others / "servo"])
    with pytest.raises(InstanceError, match="belongs to another user"):
        instances.make_directory({}, os.geteuid())
    assert list(others.iterdir()) == []


def test_a_runtime_directory_whose_parent_others_can_write_to_is_not_trusted(place: Path) -> None:
    """A user who can write to the parent can move any directory of root's there."""
    directory = place / "servo"
    endpoint = serve(place)
    assert len(instances.instances([directory])) == 1
    place.chmod(0o777)
    assert instances.instances([directory]) == []
    place.chmod(0o1777)  # /tmp
    assert len(instances.instances([directory])) == 1
    endpoint.close()
