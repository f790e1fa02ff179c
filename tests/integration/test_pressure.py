"""Attackers, full machines and broken apps: in every worker class, other clients are served."""

from __future__ import annotations

import concurrent.futures
import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.conftest import class_args
from integration.load import EVERY_KIND, Load, read_response
from integration.raw import connect, many, read_all, request, reset, status, talk
from integration.server import APPS, Server, memory

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

BIG = 8_000_000


def limited(limit: str) -> tuple[str, ...]:
    """Servo under a limit of the shell's `ulimit`."""
    return ("bash", "-c", f'ulimit {limit} && exec "$0" -m servo "$@"', sys.executable)


def check_healthy(server: Server, workers: list[int]) -> None:
    """Still answers, from the same workers, and nothing is in the log that should not be."""
    assert status(talk(server, request())) == 200
    assert server.worker_pids() == workers
    assert "Traceback" not in server.log()


# --- the machine runs out of things ---------------------------------------------------------------


def test_no_descriptors_left(serve: Serve, worker_class: str) -> None:
    """Who is connected is served on; who comes is served as soon as there is a descriptor."""
    server = serve(*class_args(worker_class), "-w", "1", command=limited("-n 64"))
    workers = server.wait_workers(1)
    with connect(server) as kept:
        kept.sendall(request(close=False))
        read_response(kept)
        with many(server, 100):
            server.wait_log("Can't accept a connection: .*Too many open files")
            for _ in range(20):
                kept.sendall(request(close=False))
                read_response(kept)
            waiting = connect(server)
            waiting.sendall(request())
        with waiting:
            assert status(read_all(waiting)) == 200
    # It has tried again and again; the log says so now and then, not every time.
    assert server.log().count("Can't accept a connection") <= 5
    check_healthy(server, workers)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"can't mount a small file system: {mounted.stderr.decode()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def wsgi_args(worker_class: str) -> tuple[str, ...]:
    """The WSGI app in any worker class: only there are bodies stored."""
    return (f"{APPS / 'wsgi_app.py'}:app", *class_args(worker_class)[1:])


def upload(size: int) -> bytes:
    return request("/upload", method="POST", body=b"x" * size)


def test_full_disk(serve: Serve, worker_class: str, small_disk: Path) -> None:
    server = serve(*wsgi_args(worker_class), "-w", "1", "--tmp-upload-dir", str(small_disk))
    workers = server.wait_workers(1)
    check_storing(server, 507, BIG)
    # Where only the last buffered bytes don't fit any more, it must come to the same.
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (2_097_152 - 4096 * 257))
    for size in (1_050_000, 1_052_000, 1_053_000, 1_055_000, 1_060_000):
        assert status(talk(server, upload(size))) in (200, 507)
    filler.unlink()
    check_storing(server, 507, BIG)
    check_healthy(server, workers)


def test_file_size_limit(serve: Serve, worker_class: str) -> None:
    """EFBIG instead of ENOSPC: not the disk's fault."""
    server = serve(*wsgi_args(worker_class), "-w", "1", command=limited("-f 4096"))
    workers = server.wait_workers(1)
    check_storing(server, 500, BIG)
    check_healthy(server, workers)


def check_storing(server: Server, refusal: int, size: int) -> None:
    with Load(server.port, {"raw-kept": 1, "raw-fresh": 1}) as load:
        load.wait_answers(5)
        for _ in range(3):
            assert status(talk(server, upload(size))) == refusal
        assert status(talk(server, upload(1_200_000))) == 200
        load.wait_answers(5)
    assert load.failures == []


# --- memory ---------------------------------------------------------------------------------------


CHUNKED = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_header_bombs(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "1")
    (worker,) = workers = server.wait_workers(1)
    talk(server, request())
    before = memory(worker)
    # Each sends up to 8 MB of what never ends: one line, or lines.
    for start, piece in [
        (b"GET /", b"a" * 65536),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: ", b"b" * 65536),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"A: b\r\n" * 8192),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", (b"A: " + b"b" * 8000 + b"\r\n") * 8),
        (b"\r\n", b"\r\n" * 32768),
        # To where the application waits for the body: else it may have answered by then.
        (CHUNKED + b"1;", b"e" * 65536),
        (CHUNKED + b"0\r\n", b"A: b\r\n" * 8192),
    ]:
        with many(server, 20) as clients:
            for client in clients:
                answer = shout(client, start, piece)
                assert status(answer) in (400, 414, 431), (start, piece[:10], answer)
    assert memory(worker) - before < 16 << 20
    check_healthy(server, workers)


def shout(client: socket.socket, start: bytes, piece: bytes) -> bytes:
    """Send 128 pieces without a look at what comes; then all that came."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(start)
        for _ in range(128):
            client.sendall(piece)
    with contextlib.suppress(ConnectionResetError):
        return read_all(client)
    return b""


@pytest.mark.parametrize("target", ["/", "/bulk?bytes=100000", "/stream?bytes=1000000"])
def test_endless_pipelining(serve: Serve, worker_class: str, target: str) -> None:
    """A client that asks on and on and reads nothing is not read from any more."""
    server = serve(*class_args(worker_class), "-w", "1", "--send-timeout", "2")
    (worker,) = workers = server.wait_workers(1)
    talk(server, request(target))
    before = memory(worker)
    pipeline = request(target, close=False) * 1000
    with connect(server, receive_buffer=8192) as client:
        client.setblocking(False)
        sent = 0
        end = time.monotonic() + 30
        while sent < 200_000_000:
            assert time.monotonic() < end, "it takes for ever"
            if not select.select([], [client], [], 0.5)[1]:
                break  # nobody takes it
            try:
                sent += client.send(pipeline)
            except (ConnectionResetError, BrokenPipeError):
                break
        assert sent < 200_000_000
        assert memory(worker) - before < 4 << 20
        assert status(talk(server, request())) == 200
    check_healthy(server, workers)


def test_idle_connections_are_cheap(serve: Serve, worker_class: str) -> None:
    """`make soak` measures 10,000 of them; 20 KB each is far above what it finds."""
    server = serve(*class_args(worker_class), "-w", "1", "--worker-connections", "2000")
    (worker,) = workers = server.wait_workers(1)
    with many(server, 100) as first:
        for client in first:
            client.sendall(request(close=False))
            read_response(client)
    before = memory(worker)
    with many(server, 1000) as clients:
        for client in clients:
            client.sendall(request(close=False))
        for client in clients:
            read_response(client)
        assert memory(worker) - before < 1000 * 20_000
        assert status(talk(server, request())) == 200
    check_healthy(server, workers)


# --- clients that break off -----------------------------------------------------------------------

POST = b"POST /upload HTTP/1.1\r\nHost: a\r\n"
STAGES = {
    "nothing": b"",
    "half a head": b"GET / HT",
    "half a body": POST + b"Content-Length: 100\r\n\r\nabc",
    "half a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nff\r\nab",
    "waiting for 100": POST + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n",
    "waiting for the app": request("/slow?s=0.05"),
    "pipelined": request("/slow?s=0.01", close=False) * 30,
    "in the response": request("/stream?bytes=50000000"),
    "in a file": request("/file"),
    "refused": b"GET / HTTP/1.1\r\n\r\n",
    "lingering": POST + b"Content-Length: x\r\n\r\n" + b"y" * 100_000,
}


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(b"f" * BIG)
    return path


@pytest.mark.parametrize("end", ["reset", "close"])
def test_broken_off_at_any_point(serve: Serve, worker_class: str, end: str, big_file: Path) -> None:
    server = serve(*class_args(worker_class), "-w", "1", env={"BIG_FILE": str(big_file)})
    workers = server.wait_workers(1)
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(20)
        for data in STAGES.values():
            for read in (False, True):
                for _ in range(5):
                    client = connect(server, receive_buffer=4096)
                    client.sendall(data)
                    if read:
                        client.settimeout(0.02)
                        with contextlib.suppress(TimeoutError, ConnectionResetError):
                            client.recv(1000)
                    if end == "reset":
                        reset(client)
                    else:
                        client.close()
        load.wait_answers(50)
    assert load.failures == []
    check_healthy(server, workers)


def test_disconnect_ends_a_stream(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "1")
    workers = server.wait_workers(1)
    with connect(server) as client:
        client.sendall(request("/endless"))
        assert len(client.recv(100_000)) > 100
    server.wait_log("the endless body has ended")
    check_healthy(server, workers)


@pytest.mark.parametrize("worker_class", ["thread", "async"])
def test_a_stream_to_a_fast_client_leaves_others_their_turn(
    serve: Serve, worker_class: str
) -> None:
    """One that takes all there is, as fast as the application makes it, and one that goes."""
    server = serve(*class_args(worker_class), "-w", "1")
    workers = server.wait_workers(1)
    with connect(server) as greedy, concurrent.futures.ThreadPoolExecutor(1) as pool:
        greedy.sendall(request("/endless"))
        taken = pool.submit(read_bytes, greedy, 200_000_000)
        for _ in range(20):
            with connect(server) as hasty:
                hasty.sendall(request("/endless"))
                assert len(hasty.recv(100_000)) > 100
            assert status(talk(server, request())) == 200
        taken.result()
    check_healthy(server, workers)


def read_bytes(client: socket.socket, count: int) -> None:
    while count > 0:
        got = len(client.recv(1 << 20))
        assert got, "the stream has ended"
        count -= got


def test_files_that_nobody_reads(serve: Serve, worker_class: str, big_file: Path) -> None:
    """Two hundred of them hold no thread, and no memory."""
    server = serve(*class_args(worker_class), "-w", "1", env={"BIG_FILE": str(big_file)})
    (worker,) = workers = server.wait_workers(1)
    talk(server, request("/file"))
    before = memory(worker)
    with many(server, 200, receive_buffer=4096) as clients:
        for client in clients:
            client.sendall(request("/file"))
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        with Load(server.port, EVERY_KIND) as load:
            load.wait_answers(50)
        assert load.failures == []
        assert memory(worker) - before < 16 << 20
        assert len(read_all(clients[0])) > BIG - 200
    check_healthy(server, workers)


def test_streams_that_nobody_reads(serve: Serve) -> None:
    """An app that makes a body as it goes waits for its reader: two hundred of them, in `async`."""
    server = serve(*class_args("async"), "-w", "1")
    (worker,) = workers = server.wait_workers(1)
    talk(server, request("/stream"))
    before = memory(worker)
    with many(server, 200, receive_buffer=4096) as clients:
        for client in clients:
            client.sendall(request("/stream?bytes=100000000"))
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        with Load(server.port, EVERY_KIND) as load:
            load.wait_answers(50)
        assert load.failures == []
        assert memory(worker) - before < 64 << 20
    check_healthy(server, workers)


# --- apps that break off --------------------------------------------------------------------------


def test_app_raises(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "1")
    workers = server.wait_workers(1)
    # What was pipelined behind it is answered, too.
    response = talk(server, request("/fail", close=False) + request())
    assert status(response) == 500
    assert response.count(b"HTTP/1.1 200 OK") == 1
    assert b"on purpose" not in response
    server.wait_log("RuntimeError: the app failed on purpose")
    response = talk(server, request("/fail-late", close=False))
    assert response.endswith(b"5\r\nbegun\r\n")  # and no last chunk: it can't be taken for whole
    server.wait_log("RuntimeError: the app failed in the middle, on purpose")
    for kind, name in [
        ("cancelled", "CancelledError"),
        ("exit", "SystemExit"),
        ("generator", "GeneratorExit"),
    ]:
        for _ in range(10):  # more than there are threads
            assert status(talk(server, request(f"/fail?kind={kind}"))) == 500
        server.wait_log(f"{name}: the app failed on purpose")
    assert status(talk(server, request())) == 200
    assert server.worker_pids() == workers


def test_body_that_the_app_does_not_read(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "1")
    workers = server.wait_workers(1)
    whole = request(
        "/ignore", method="POST", body=b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", close=False
    )
    answers = talk(server, whole + request())
    assert answers.count(b"HTTP/1.1 200") == 2
    assert b"no such path" not in answers
    # Not all of it has come when it is answered: then it can't be told from a next request.
    with connect(server) as client:
        client.sendall(whole[:-5])
        client.sendall(whole[-5:] + request("/smuggled"))
        answers = read_all(client)
    assert answers.count(b"HTTP/1.1 200") == 1
    check_healthy(server, workers)
