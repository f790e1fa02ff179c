"""Listening sockets: binding, inherited ones, error messages, and the removal of socket files."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from servo.errors import BindError, ConfigError
from servo.net import listeners as module
from servo.net.address import AbstractAddress, FdAddress, TCPAddress, UnixAddress
from servo.net.listeners import bind_all


def settings(*bind: str, **changes: object) -> SimpleNamespace:
    values = {"backlog": 16, "reuse_port": False, "umask": None, "user": None, "group": None}
    return SimpleNamespace(bind=list(bind), **(values | changes))


@pytest.fixture
def bind():
    """Call `bind_all`, and close its listeners at the end of the test."""
    opened = []

    def run(*addresses, environ=None, **changes):
        found = bind_all(settings(*addresses, **changes), {} if environ is None else environ)
        opened.extend(found)
        return found

    yield run
    for listener in opened:
        listener.close()


def connect(listener) -> socket.socket:
    client = socket.socket(listener.socket.family, socket.SOCK_STREAM)
    client.settimeout(5)
    client.connect(listener.socket.getsockname())
    return client


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


# --- TCP ----------------------------------------------------------------------------------------


def test_a_tcp_listener_is_ready_to_be_shared(bind):
    (listener,) = bind("127.0.0.1:0")
    port = listener.socket.getsockname()[1]
    assert listener.address == TCPAddress("127.0.0.1", port)
    assert listener.requested == TCPAddress("127.0.0.1", 0)
    assert listener.name == f"http://127.0.0.1:{port}"
    assert not listener.socket.getblocking()
    assert not os.get_inheritable(listener.fileno())
    assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    with pytest.raises(BlockingIOError):
        listener.socket.accept()


def test_an_accepted_socket_has_no_delay(bind):
    (listener,) = bind("127.0.0.1:0")
    with connect(listener):
        server, _ = listener.socket.accept()
        with server:
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_several_addresses_are_bound_in_their_order(bind, tmp_path):
    found = bind("127.0.0.1:0", f"unix:{tmp_path}/a", "127.0.0.1:0")
    assert [type(listener.requested) for listener in found] == [TCPAddress, UnixAddress, TCPAddress]
    assert len({listener.name for listener in found}) == 3


@ipv6
def test_ipv6(bind):
    (listener,) = bind("[::1]:0")
    assert re.fullmatch(r"http://\[::1\]:\d+", listener.name)
    connect(listener).close()


@ipv6
def test_the_ipv6_wildcard_takes_ipv4_too_unless_that_is_bound_by_itself(bind):
    (dual,) = bind("[::]:0")
    port = dual.address.port
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
    dual.close()
    four, six = bind(f"0.0.0.0:{port}", f"[::]:{port}")
    assert six.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert four.address.port == six.address.port


def test_a_name_is_bound_on_every_address_that_this_machine_has(bind, monkeypatch):
    def resolve(host, port, **_):
        assert host == "app.test"
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in ("127.0.0.1", "192.0.2.7", "127.0.0.2", "127.0.0.1")
        ]

    (first,) = bind("127.0.0.1:0")
    port = first.address.port
    first.close()
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    found = bind(f"app.test:{port}")
    assert [str(listener.address) for listener in found] == [
        f"127.0.0.1:{port}",
        f"127.0.0.2:{port}",
    ]
    assert len(bind("app.test:0")) == 1


def test_a_taken_port_is_named_with_its_owner_and_nothing_stays_open(bind, tmp_path):
    (first,) = bind("127.0.0.1:0")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BindError) as caught:
        bind("127.0.0.1:0", f"unix:{tmp_path}/a", str(first.address))
    assert str(caught.value) == f"{first.address} is already in use by this process itself"
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "address", "reason"),
    [
        (errno.EACCES, "127.0.0.1:80", "ports below 1024 need root or CAP_NET_BIND_SERVICE"),
        (errno.EACCES, "127.0.0.1:8080", "can't bind 127.0.0.1:8080: Permission denied"),
        (errno.EAFNOSUPPORT, "[::1]:80", "no IPv6"),
        (errno.ENOBUFS, "127.0.0.1:80", "No buffer space available"),
    ],
)
def test_each_failure_has_a_message_of_its_own(bind, monkeypatch, code, address, reason):
    class Refusing(socket.socket):
        def bind(self, _):
            raise OSError(code, os.strerror(code))

    if code == errno.EAFNOSUPPORT and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    monkeypatch.setattr(module.socket, "socket", Refusing)
    with pytest.raises(BindError, match=reason):
        bind(address)


def test_an_address_of_another_machine(bind):
    with pytest.raises(BindError, match=r"192\.0\.2\.7:0: no interface of this machine has"):
        bind("192.0.2.7:0")


def test_a_name_that_does_not_resolve(bind, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(BindError, match=r"no address for nowhere\.test: .*not known"):
        bind("nowhere.test:80")


def test_an_address_twice(bind):
    with pytest.raises(BindError, match="listed twice"):
        bind("unix:@servo-twice", "unix:@servo-twice")


def test_a_malformed_address_is_an_error_of_the_configuration(bind):
    with pytest.raises(ConfigError):
        bind("127.0.0.1:0", "127.0.0.1:x")


def test_a_sibling_has_a_queue_of_its_own_on_the_same_port(bind):
    (first,) = bind("127.0.0.1:0", reuse_port=True)
    second = first.sibling(16)
    assert second.address == first.address
    assert second.name == first.name
    assert second.fileno() != first.fileno()
    first.close()
    with connect(second):
        second.socket.accept()[0].close()
    second.close()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:@servo-sibling"])
def test_no_sibling_without_reuse_port(bind, address):
    (listener,) = bind(address)
    with pytest.raises(BindError, match="SO_REUSEPORT"):
        listener.sibling(16)


# --- Unix sockets -------------------------------------------------------------------------------


def test_a_socket_file_that_was_removed_or_replaced_is_lost(bind, tmp_path):
    path = tmp_path / "s"
    tcp, unix = bind("127.0.0.1:0", f"unix:{path}")
    assert (tcp.is_lost, unix.is_lost) == (False, False)
    path.rename(tmp_path / "away")
    assert (tcp.is_lost, unix.is_lost) == (False, True)
    path.write_text("something else")
    assert unix.is_lost
    (tmp_path / "away").replace(path)
    assert not unix.is_lost


def test_a_unix_socket_is_made_with_the_umask_and_removed_at_the_end(bind, tmp_path):
    path = tmp_path / "app.sock"
    before = os.umask(0o022)
    try:
        (listener,) = bind(f"unix:{path}", umask=0o117)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert listener.name == f"unix:{path}"
    connect(listener).close()
    listener.close()
    assert not path.exists()
    assert listener.fileno() == -1
    listener.close()


def test_a_dead_servers_socket_is_replaced(bind, tmp_path):
    path = tmp_path / "app.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.listen()
    dead.close()
    (listener,) = bind(f"unix:{path}")
    connect(listener).close()


@pytest.mark.parametrize("full", [False, True])
def test_a_living_servers_socket_is_left_alone(bind, tmp_path, full):
    path = tmp_path / "app.sock"
    clients = []
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen(0)
        if full:
            clients.append(socket.socket(socket.AF_UNIX))
            clients[0].connect(str(path))
        who = "" if full else ", this process itself"
        with pytest.raises(BindError, match=f"is already in use by a running server{who}$"):
            bind(f"unix:{path}")
    assert path.exists()
    for client in clients:
        client.close()


def test_a_file_that_is_no_socket_is_not_touched(bind, tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(BindError, match="exists and is not a socket"):
        bind(f"unix:{path}")
    assert path.read_text() == "data"


def test_a_symlink_is_not_followed(bind, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BindError, match="not a socket"):
        bind(f"unix:{tmp_path}/link")


def test_a_socket_of_another_kind_is_not_removed(bind, tmp_path):
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(path))
        with pytest.raises(BindError, match="can't be probed"):
            bind(f"unix:{path}")
    assert path.exists()


def test_a_missing_directory_is_named(bind, tmp_path):
    with pytest.raises(BindError, match=f"the directory {tmp_path}/missing does not exist"):
        bind(f"unix:{tmp_path}/missing/app.sock")


def test_a_directory_without_permission_is_named(bind, tmp_path, monkeypatch):
    class Refusing(socket.socket):
        def bind(self, _):
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module.socket, "socket", Refusing)
    with pytest.raises(BindError, match=f"permission denied in {tmp_path}"):
        bind(f"unix:{tmp_path}/app.sock")


def test_a_failure_after_the_bind_leaves_no_file(bind, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(BindError, match="permission denied"):
        bind(f"unix:{tmp_path}/app.sock", user=os.geteuid() + 1)
    assert list(tmp_path.iterdir()) == []


def test_the_socket_goes_to_the_workers_user_and_group(bind, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        os, "chown", lambda path, *ids, **_: calls.append((os.readlink(path), *ids))
    )
    bind(f"unix:{tmp_path}/a", user=os.geteuid(), group=os.getegid())
    assert calls == []
    bind(f"unix:{tmp_path}/b", user=os.geteuid() + 1, group=os.getegid())
    assert calls == [(f"{tmp_path}/b", os.geteuid() + 1, -1)]


def test_a_file_that_another_server_put_there_is_not_removed(bind, tmp_path):
    path = tmp_path / "app.sock"
    (old,) = bind(f"unix:{path}")
    # Keep the old file, or the file system may give its inode number to the new one.
    path.rename(tmp_path / "moved")
    (new,) = bind(f"unix:{path}")
    old.close()
    assert path.exists()
    connect(new).close()


def test_a_forked_process_closes_its_copy_but_leaves_the_file(bind, tmp_path):
    path = tmp_path / "app.sock"
    (listener,) = bind(f"unix:{path}")
    pid = os.fork()
    if pid == 0:
        listener.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    connect(listener).close()


def test_closing_can_leave_the_file_for_a_successor(bind, tmp_path):
    path = tmp_path / "app.sock"
    (listener,) = bind(f"unix:{path}")
    listener.close(unlink=False)
    assert path.exists()


@pytest.mark.parametrize("call", ["unlink", "lstat"])
def test_a_file_that_can_not_be_removed_leaves_nothing_open(
    bind, tmp_path, monkeypatch, caplog, call
):
    listeners = bind(f"unix:{tmp_path}/a", f"unix:{tmp_path}/b", "127.0.0.1:0")

    def fail(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for listener in listeners:
            listener.close()
    assert [listener.fileno() for listener in listeners] == [-1, -1, -1]
    assert [record.args[0] for record in caplog.records] == [
        f"unix:{tmp_path}/a",
        f"unix:{tmp_path}/b",
    ]


def test_a_close_that_fails_is_survived(bind, monkeypatch, caplog):
    (listener,) = bind("127.0.0.1:0")

    def fail(sock):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "close", fail)
        listener.close()
    assert "Input/output error" in caplog.text


def test_an_abstract_socket(bind):
    name = f"servo-test-{os.getpid()}"
    (listener,) = bind(f"unix:@{name}")
    assert listener.address == AbstractAddress(name)
    assert listener.name == f"unix:@{name}"
    connect(listener).close()
    with pytest.raises(BindError, match=f"unix:@{name} is already in use"):
        bind(f"@{name}")


# --- inherited ----------------------------------------------------------------------------------


def given_fd(sock: socket.socket) -> int:
    """The socket's descriptor, made inheritable as a parent process does."""
    fd = sock.detach()
    os.set_inheritable(fd, True)
    return fd


def test_a_listening_descriptor_is_taken_over(bind):
    fd = given_fd(socket.create_server(("127.0.0.1", 0)))
    (listener,) = bind(f"fd://{fd}")
    assert listener.fileno() == fd
    assert listener.requested == FdAddress(fd)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", listener.name)
    assert not listener.socket.getblocking()
    assert not os.get_inheritable(fd)
    connect(listener).close()


def test_a_bound_descriptor_is_made_to_listen(bind):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    (listener,) = bind(f"fd://{given_fd(sock)}")
    connect(listener).close()


def test_the_file_of_an_inherited_unix_socket_is_not_removed(bind, tmp_path):
    path = tmp_path / "app.sock"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    (listener,) = bind(f"fd://{given_fd(sock)}")
    assert listener.address == UnixAddress(str(path))
    listener.close()
    assert path.exists()


NO_LISTENERS = [
    ("not bound", lambda: socket.socket().detach()),
    ("not bound", lambda: socket.socket(socket.AF_UNIX).detach()),
    ("not a stream socket", lambda: socket.socket(type=socket.SOCK_DGRAM).detach()),
    ("neither a TCP nor", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach()),
    ("not a socket", lambda: os.open("/dev/null", os.O_RDONLY)),
]


@pytest.mark.parametrize(("reason", "make"), NO_LISTENERS)
def test_a_descriptor_that_can_not_listen_is_refused_and_left_open(bind, reason, make):
    fd = make()
    with pytest.raises(BindError, match=f"fd://{fd}.*{reason}"):
        bind(f"fd://{fd}")
    os.close(fd)


def test_a_connection_is_no_listener(bind):
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(BindError, match="is a connection"):
        bind(f"fd://{ours.fileno()}")


def test_a_closed_descriptor_is_refused(bind):
    with pytest.raises(BindError, match="file descriptor 987654 is not open"):
        bind("fd://987654")


def test_systemds_sockets_are_used_in_place_of_bind(bind, monkeypatch):
    sock = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(module, "_SYSTEMD_FIRST_FD", given_fd(sock))
    environ = {
        "LISTEN_FDS": "1",
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDNAMES": "web",
        "HOME": "/",
    }
    (listener,) = bind("127.0.0.1:1", environ=environ)
    assert listener.label == "web"
    assert environ == {"HOME": "/"}
    connect(listener).close()


def stored(monkeypatch, *socks):
    """The environment in which systemd passes stored sockets on, with descriptors in a row."""
    first = 900
    for number, sock in enumerate(socks):
        os.dup2(sock.fileno(), first + number)
        sock.close()
    monkeypatch.setattr(module, "_SYSTEMD_FIRST_FD", first)
    names = ":".join(f"servo-listener-{number}" for number in range(len(socks)))
    count = str(len(socks))
    return {"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": names}


def test_a_stored_socket_is_used_for_its_address(bind, monkeypatch):
    kept, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    port, other_port = kept.getsockname()[1], other.getsockname()[1]
    environ = stored(monkeypatch, other, kept)
    taken, fresh = bind(f"127.0.0.1:{port}", "127.0.0.1:0", environ=environ)
    assert taken.fileno() == 901
    assert taken.label == ""
    assert taken.stored_as == f"servo-listener-127.0.0.1_{port}"
    assert fresh.address.port not in (port, other_port)
    connect(taken).close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(900)  # no address of bind is its own


def test_stored_sockets_give_way_to_those_of_a_socket_unit(bind, monkeypatch):
    unit, kept = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    port = kept.getsockname()[1]
    environ = stored(monkeypatch, unit, kept)
    environ["LISTEN_FDNAMES"] = "web.socket:servo-listener-a"
    (listener,) = bind(f"127.0.0.1:{port}", environ=environ)
    assert (listener.fileno(), listener.stored_as) == (900, "")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(901)


def test_a_start_that_fails_closes_no_stored_socket(bind, monkeypatch):
    environ = stored(monkeypatch, socket.create_server(("127.0.0.1", 0)))
    with pytest.raises(BindError, match="does not exist"):
        bind("unix:/nowhere/at/all", environ=environ)
    os.close(900)


@pytest.mark.parametrize(
    "environ",
    [
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_systemds_sockets_for_another_process_are_not_ours(bind, environ):
    (listener,) = bind("127.0.0.1:0", environ=environ)
    assert isinstance(listener.requested, TCPAddress)


def test_a_malformed_listen_fds_is_named(bind):
    with pytest.raises(BindError, match="LISTEN_FDS is 'many'"):
        bind("127.0.0.1:0", environ={"LISTEN_FDS": "many", "LISTEN_PID": str(os.getpid())})


def test_a_missing_systemd_socket_is_named(bind, monkeypatch):
    monkeypatch.setattr(module, "_SYSTEMD_FIRST_FD", 987654)
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "web"}
    with pytest.raises(BindError, match="systemd's socket web: file descriptor 987654"):
        bind("127.0.0.1:0", environ=environ)


def test_one_of_many_simultaneous_starts_binds_a_stale_socket(tmp_path):
    """Without a lock, each would take the file for stale and remove the other's new socket."""
    path = tmp_path / "app.sock"
    for _ in range(20):
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        go, start = os.pipe()
        hold, end = os.pipe()
        for _ in range(5):
            if os.fork() == 0:
                os.close(start)
                os.close(end)
                os.read(go, 1)
                code = 1
                try:
                    kept = bind_all(settings(f"unix:{path}"), {})
                    code = len(kept) - 1
                    os.read(hold, 1)
                finally:
                    os._exit(code)
        os.close(go)
        os.close(start)
        losers = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(4)]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))  # the one server that is left can be reached
        os.close(hold)
        os.close(end)
        assert (os.waitstatus_to_exitcode(os.wait()[1]), losers) == (0, [1] * 4)


def test_a_directory_that_stays_locked_does_not_stop_the_start(tmp_path, monkeypatch, bind):
    """Any user who can read the directory can lock it, but must not stop the server's start."""
    monkeypatch.setattr(module, "_LOCK_WAIT_S", 0.0)
    said = []
    monkeypatch.setattr(module.log, "warning", lambda text, *args: said.append(text % args))
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    bind(f"unix:{tmp_path}/app.sock")
    assert "without a lock" in said[0]
    with pytest.raises(BindError, match="already in use"):
        bind(f"unix:{tmp_path}/app.sock")
    os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_the_socket_is_given_away_and_no_other_file(bind, tmp_path, monkeypatch):
    bind(f"unix:{tmp_path}/a", user=65534)
    assert (tmp_path / "a").stat().st_uid == 65534
    real = os.lstat

    def replaced(path, **options):
        """Replace the socket with a file of root's right after bind()."""
        status = real(path, **options)
        os.unlink(path)
        Path(path).write_text("root's")
        return status

    with monkeypatch.context() as patch:
        patch.setattr(module, "_remove_stale", lambda _address: None)
        patch.setattr(os, "lstat", replaced)
        with pytest.raises(BindError, match="another process has put a file in its place"):
            bind(f"unix:{tmp_path}/b", user=65534)
