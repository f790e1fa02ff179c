"""Every kind of address that a server can listen on."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from integration.load import read_response
from integration.server import APPS, Server, free_port

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"

# Take the socket at descriptor 3 as systemd passes it on: LISTEN_PID is the process's own.
SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "servo", *sys.argv[2:]])
"""


def ask(address: str | tuple[str, int], family: int = socket.AF_UNIX) -> bytes:
    with socket.socket(family) as client:
        client.settimeout(30)
        client.connect(address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return read_response(client)[1]


def test_unix_socket(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    path = tmp_path / "app.sock"
    module = "asgi_app" if worker_class == "async" else "wsgi_app"
    server = serve(
        f"{APPS / module}.py:app", "-k", worker_class, "--bind", f"unix:{path}", "--umask", "0o077"
    )
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, trust_env=False, timeout=30) as client:
        assert client.get("http://localhost/").text == "ok"
        assert len(client.get("http://localhost/stream").content) == 1_000_000
    assert server.stop() == 0
    assert not path.exists()


def test_stale_unix_socket_is_replaced(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    serve(WSGI, "--bind", f"unix:{path}")
    assert ask(str(path)) == b"ok"


def test_live_unix_socket_is_not_stolen(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    serve(WSGI, "--bind", f"unix:{path}")
    second = serve(WSGI, "--bind", f"unix:{path}", ready=0)
    assert second.wait_exit() == 1
    second.wait_log("app.sock.*in use")
    assert ask(str(path)) == b"ok"


def test_other_file_in_the_way_is_not_removed(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    path.write_text("precious")
    server = serve(WSGI, "--bind", f"unix:{path}", ready=0)
    assert server.wait_exit() == 1
    assert path.read_text() == "precious"


def test_abstract_unix_socket(serve: Serve) -> None:
    name = f"servo-test-{os.getpid()}-{free_port()}"
    serve(WSGI, "--bind", f"unix:@{name}")
    assert ask(f"\0{name}") == b"ok"


def test_inherited_descriptor(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        serve(WSGI, "--bind", f"fd://{fd}", pass_fds=(fd,))
        assert ask(listener.getsockname(), socket.AF_INET) == b"ok"


def test_descriptor_that_is_no_listening_socket(serve: Serve) -> None:
    server = serve(WSGI, "--bind", "fd://97", ready=0)
    assert server.wait_exit() == 1
    server.wait_log("fd://97")


def test_systemd_socket_activation(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        serve(
            WSGI,
            bind=False,
            pass_fds=(fd,),
            command=(sys.executable, "-c", SYSTEMD, str(fd)),
        )
        assert ask(listener.getsockname(), socket.AF_INET) == b"ok"


def test_several_addresses_at_once(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    ports = [free_port(), free_port()]
    path = tmp_path / "app.sock"
    module = "asgi_app" if worker_class == "async" else "wsgi_app"
    binds = [f"127.0.0.1:{port}" for port in ports] + [f"unix:{path}"]
    serve(
        f"{APPS / module}.py:app",
        *("-k", worker_class),
        *(part for bind in binds for part in ("--bind", bind)),
    )
    assert [ask(("127.0.0.1", port), socket.AF_INET) for port in ports] == [b"ok", b"ok"]
    assert ask(str(path)) == b"ok"


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="the machine has no IPv6")
def test_ipv6(serve: Serve) -> None:
    port = free_port()
    serve(WSGI, "--bind", f"[::1]:{port}")
    assert ask(("::1", port), socket.AF_INET6) == b"ok"


def test_reuse_port(serve: Serve) -> None:
    """Two servers on one port, as the setting promises."""
    port = free_port()
    args = (WSGI, "--bind", f"127.0.0.1:{port}", "--reuse-port")
    first, _ = serve(*args), serve(*args)
    assert ask(("127.0.0.1", port), socket.AF_INET) == b"ok"
    first.stop()
    assert ask(("127.0.0.1", port), socket.AF_INET) == b"ok"


def test_port_of_the_environment(serve: Serve) -> None:
    port = free_port()
    serve(WSGI, bind=False, env={"PORT": str(port)})
    assert ask(("127.0.0.1", port), socket.AF_INET) == b"ok"
