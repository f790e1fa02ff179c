"""TLS with real clients: Python's ssl, requests, httpx, and OpenSSL's own."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import ssl
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from authority import Authority, Files

from integration.conftest import Serve
from integration.server import APPS, DEADLINE_S, Server, assert_no_noise, run_servo, wait_for
from integration.tls_client import CLASSES, Connection, TLSLoad, s_client

pytestmark = pytest.mark.slow

KINDS = {
    **CLASSES,
    "wsgi-in-async": ("tls_wsgi", ("-k", "async")),
}


def kind_args(kind: str) -> tuple[str, ...]:
    module, flags = KINDS[kind]
    return (f"{APPS / module}.py:app", *flags)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sync", "thread", "async"])
def worker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_refused(server: Server, context: ssl.SSLContext, before: bytes = b"") -> None:
    """The handshake fails, or, as TLS 1.3 has it for clients' certificates, what follows it."""
    with warnings.catch_warnings():
        # `wrap_socket` leaves its socket to the collector where the peer is gone already.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with Connection(server.port, context, before=before) as connection:
                connection.get()
        except (OSError, ValueError):  # ssl.SSLError is an OSError
            return
    pytest.fail("served")


# --- what is spoken -------------------------------------------------------------------------------


def test_requests_and_httpx(serve: Serve, authority: Authority, files: Files, kind: str) -> None:
    server = serve(*kind_args(kind), *files.flags, "--access-logfile", "-")
    server.wait_log(rf"Listening on https://127\.0\.0\.1:{server.port}")
    url = f"https://localhost:{server.port}/"
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(authority.path)
        for _ in range(3):
            answer = session.get(url, timeout=DEADLINE_S)
            assert answer.status_code == 200
            assert answer.json()["scheme"] == "https"
        echoed = session.post(f"{url}echo", data=b"x" * 100_000, timeout=DEADLINE_S)
        assert echoed.content == b"x" * 100_000
    with httpx.Client(verify=authority.client_context(), trust_env=False) as client:
        facts = client.get(url, timeout=DEADLINE_S).json()
    told = facts.get("environ") or facts["extensions"]["tls"]
    if "environ" in facts:
        assert told["HTTPS"] == "on"
        assert told["SSL_PROTOCOL"] == "TLSv1.3"
        assert told["SSL_CIPHER"].startswith("TLS_")
        assert told["SSL_CLIENT_VERIFY"] == "NONE"
    else:
        assert told["tls_version"] == 0x0304
        assert told["cipher_suite"] in (0x1301, 0x1302, 0x1303)
        assert told["server_cert"].strip() == files.cert.read_text().strip()
        assert told["client_cert_chain"] == []
        assert told["client_cert_name"] is None
        assert told["client_cert_error"] is None
        assert set(facts["extensions"]) >= {"tls", "http.response.pathsend"}
        assert not any(name.startswith("servo.") for name in facts["extensions"])
    server.stop()
    assert_no_noise(server)


def test_openssl_as_the_client(
    serve: Serve, authority: Authority, files: Files, worker: str
) -> None:
    server = serve(*kind_args(worker), *files.flags)
    ca = ("-CAfile", str(authority.path), "-verify_return_error", "-verify_hostname", "localhost")
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for flag, version in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")]:
        said = s_client(
            server.port, *ca, flag, "-alpn", "http/1.1", "-ign_eof", "-servername", "localhost",
            text=request,
        )  # fmt: skip
        assert "Verify return code: 0 (ok)" in said
        assert f"New, {version}" in said
        assert "ALPN protocol: http/1.1" in said
        assert "HTTP/1.1 200 OK" in said
    assert "no peer certificate available" in s_client(
        server.port, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"
    )
    strict = serve(*kind_args(worker), *files.flags, "--tls-minimum-version", "1.3")
    assert "New, TLSv1.3" in s_client(strict.port)
    assert "New, (NONE)" in s_client(strict.port, "-tls1_2")
    assert_no_noise(server)


def test_a_key_update(serve: Serve, files: Files, worker: str) -> None:
    """A client may change its key, and ask for the same, at any moment (RFC 8446 section 4.6.3)."""
    server = serve(*kind_args(worker), *files.flags)
    process = subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said = b""

    def wait_said(what: bytes, times: int) -> None:
        nonlocal said
        while said.count(what) < times:
            data = process.stdout.read1(65536)  # type: ignore[union-attr]
            assert data, said
            said += data

    wait_said(b"Verify return code", 1)
    for number in range(1, 4):
        process.stdin.write(b"K\n")
        process.stdin.flush()
        wait_said(b"KEYUPDATE", number)
        process.stdin.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        process.stdin.flush()
        wait_said(b"HTTP/1.1 200 OK", number)
    process.stdin.close()
    process.stdout.close()
    process.wait(DEADLINE_S)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_by_any_worker(
    serve: Serve, authority: Authority, files: Files, version: ssl.TLSVersion, worker: str
) -> None:
    server = serve(*kind_args(worker), *files.flags, "-w", "3", ready=3)
    context = authority.client_context()
    context.maximum_version = version
    with Connection(server.port, context) as first:
        pids = {first.facts()["pid"]}
        session = first.socket.session
        assert not first.socket.session_reused
    kept = []

    def others() -> bool:
        # Kept open, so that the workers with fewer connections take the next.
        connection = Connection(server.port, context, session=session)
        kept.append(connection)
        pids.add(connection.facts()["pid"])
        assert connection.socket.session_reused
        return len(pids) == 3

    wait_for(others, "a resumed session at each worker")
    for connection in kept:
        connection.socket.close()


def test_alpn_is_not_demanded(serve: Serve, authority: Authority, files: Files, kind: str) -> None:
    server = serve(*kind_args(kind), *files.flags)
    context = authority.client_context()
    context.set_alpn_protocols(["http/1.1"])
    with Connection(server.port, context) as connection:
        assert connection.socket.selected_alpn_protocol() == "http/1.1"
        assert connection.facts()["scheme"] == "https"
    context.set_alpn_protocols(["acme-tls/1"])
    with Connection(server.port, context) as connection:
        assert connection.socket.selected_alpn_protocol() is None
        assert connection.facts()["scheme"] == "https"


def test_the_certificate_of_the_host_that_is_named(
    serve: Serve, authority: Authority, files: Files, tmp_path: Path, worker: str
) -> None:
    one, wild = authority.issue("one", "one.example"), authority.issue("wild", "*.two.example")
    (tmp_path / "wild-with-key.pem").write_bytes(wild.key.read_bytes() + wild.cert.read_bytes())
    (tmp_path / "servo.toml").write_text(
        f"""
certfile = "{files.cert.name}"
keyfile = "{files.key.name}"
[sni_certs]
"one.example" = {{ certfile = "{one.cert}", keyfile = "{one.key.name}" }}
"*.two.example" = "wild-with-key.pem"
"""
    )
    server = serve(*kind_args(worker))
    context = authority.client_context()
    for host, names in {
        "one.example": {"one.example"},
        "shop.two.example": {"*.two.example"},
        "localhost": {"localhost", "127.0.0.1"},
    }.items():
        with Connection(server.port, context, host) as connection:
            assert connection.names == names
            facts = connection.facts()
            if "extensions" in facts:
                shown = {"one.example": one, "localhost": files}.get(host, wild)
                told = facts["extensions"]["tls"]["server_cert"]
                assert told.strip() == shown.cert.read_text().strip()


def test_client_certificates(serve: Serve, authority: Authority, files: Files, kind: str) -> None:
    person = authority.issue("person", "person@example.org", common_name="Zoë")
    stranger = Authority(authority.directory, "Other").issue("stranger", "s@example.org")
    flags = (*kind_args(kind), *files.flags, "--ca-certs", str(authority.path))
    required = serve(*flags, "--cert-reqs", "2")
    optional = serve(*flags, "--cert-reqs", "optional")

    for server in (required, optional):
        with Connection(server.port, authority.client_context(person)) as connection:
            facts = connection.facts()
        if "environ" in facts:
            environ = facts["environ"]
            assert environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
            name = environ["SSL_CLIENT_S_DN"].encode("latin-1").decode()
            chain = [environ["SSL_CLIENT_CERT"]]
        else:
            tls = facts["extensions"]["tls"]
            name, chain = tls["client_cert_name"], tls["client_cert_chain"]
            assert tls["client_cert_error"] is None
        assert "CN=Zoë" in name
        assert chain[0].strip() == person.cert.read_text().strip()

        assert_refused(server, authority.client_context(stranger))
    assert_refused(required, authority.client_context())
    with Connection(optional.port, authority.client_context()) as connection:
        facts = connection.facts()
    if "environ" in facts:
        assert facts["environ"]["SSL_CLIENT_VERIFY"] == "NONE"
        assert "SSL_CLIENT_CERT" not in facts["environ"]
    else:
        assert facts["extensions"]["tls"]["client_cert_chain"] == []
    assert_no_noise(required)
    assert_no_noise(optional)


def test_a_unix_socket_is_served_with_tls_too(
    serve: Serve, authority: Authority, files: Files, tmp_path: Path, worker: str
) -> None:
    path = tmp_path / "tls.sock"
    serve(*kind_args(worker), *files.flags, "--bind", f"unix:{path}")
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(path))
    with authority.client_context().wrap_socket(raw, server_hostname="localhost") as secure:
        secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert secure.recv(15) == b"HTTP/1.1 200 OK"


def test_a_balancer_that_passes_tls_on(
    serve: Serve, authority: Authority, files: Files, kind: str
) -> None:
    """The PROXY protocol's header comes in plaintext, before the handshake."""
    flags = (*kind_args(kind), *files.flags, "--proxy-protocol", "v1")
    server = serve(*flags)
    header = b"PROXY TCP4 198.51.100.7 192.0.2.2 4000 443\r\n"
    context = authority.client_context()
    with Connection(server.port, context, before=header) as connection:
        assert connection.facts()["client"] in (["198.51.100.7", 4000], ["198.51.100.7", "4000"])
    assert_refused(server, context)
    refusing = serve(*flags, "--proxy-allow-from", "192.0.2.1")
    assert_refused(refusing, context, before=header)
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(header[:10])
        with Connection(server.port, context, before=header) as connection:
            assert connection.facts()["scheme"] == "https"
    server.stop()
    assert_no_noise(server)


# --- bodies ---------------------------------------------------------------------------------------


def test_large_bodies_both_ways(
    serve: Serve, authority: Authority, files: Files, tmp_path: Path, kind: str
) -> None:
    server = serve(*kind_args(kind), *files.flags)
    body = os.urandom(20_000_000)
    big = tmp_path / "big"
    big.write_bytes(body)
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(authority.path)
        url = f"https://localhost:{server.port}"
        echoed = session.post(f"{url}/echo", data=body, timeout=DEADLINE_S)
        assert hashlib.sha256(echoed.content).digest() == hashlib.sha256(body).digest()
        sent = session.get(f"{url}/file", params={"path": str(big)}, timeout=DEADLINE_S)
        assert hashlib.sha256(sent.content).digest() == hashlib.sha256(body).digest()
    assert_no_noise(server)


def test_a_client_that_reads_slowly(
    serve: Serve, authority: Authority, files: Files, tmp_path: Path, kind: str
) -> None:
    """The one worker serves others while a finished response waits for its client."""
    server = serve(*kind_args(kind), *files.flags)
    body = os.urandom(8_000_000)
    big = tmp_path / "big"
    big.write_bytes(body)
    context = authority.client_context()
    with Connection(server.port, context) as slow:
        slow.socket.sendall(
            b"GET /file?path=%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % str(big).encode()
        )
        received = slow.socket.recv(1000)
        for _ in range(3):
            with Connection(server.port, context) as other:
                assert other.facts()["scheme"] == "https"
        while len(received) < len(body):
            data = slow.socket.recv(1_000_000)
            assert data
            received += data
        assert received.endswith(body[-100_000:])


def test_the_last_response_to_a_client_that_reads_slowly(
    serve: Serve, authority: Authority, files: Files, kind: str
) -> None:
    """Whatever it takes: what bounds the goodbye at its end must not cut the response."""
    server = serve(*kind_args(kind), *files.flags)
    body = os.urandom(15_000_000)
    with Connection(server.port, authority.client_context()) as slow:
        slow.socket.sendall(
            b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        slow.socket.sendall(body)
        received = [slow.socket.recv(1000)]
        time.sleep(4)  # longer than any goodbye is waited for
        while data := slow.socket.recv(1_000_000):
            received.append(data)
    assert b"".join(received).endswith(body)


def test_a_client_that_does_not_say_goodbye(
    serve: Serve, authority: Authority, files: Files, kind: str
) -> None:
    """It holds up no stop."""
    server = serve(*kind_args(kind), *files.flags, "--graceful-timeout", "25")
    with (
        Connection(server.port, authority.client_context()) as idle,
        Connection(server.port, authority.client_context()) as fresh,
    ):
        idle.get()
        assert fresh.fingerprint
        mark = server.mark()
        assert server.stop() == 0
        assert "killing" not in server.log()[mark:]


def test_a_response_without_a_length_ends_with_a_goodbye(
    serve: Serve, authority: Authority, files: Files, tmp_path: Path
) -> None:
    """HTTP/1.0: the end of the connection is that of the body, and TLS can tell it from a cut."""
    path = tmp_path / "text"
    path.write_bytes(b"0123456789" * 1000)
    context = authority.client_context()
    app = tmp_path / "stream.py"
    app.write_text(
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return iter([b'0123456789' * 100] * 10)\n"
    )
    for worker_class in ("sync", "thread", "async"):
        server = serve("stream:app", "-k", worker_class, *files.flags)
        with Connection(server.port, context) as connection:
            # Else Python takes a cut for an end.
            connection.socket.suppress_ragged_eofs = False
            connection.socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
            said = b""
            while data := connection.socket.recv(65536):
                said += data
        assert said.partition(b"\r\n\r\n")[2] == path.read_bytes(), worker_class


# --- clients that do no good ----------------------------------------------------------------------


def test_stalled_handshakes_cost_the_others_nothing(
    serve: Serve, authority: Authority, files: Files, worker: str
) -> None:
    config = authority.directory / "servo.toml"
    config.write_text("header_timeout = 2\ngraceful_timeout = 20\n")
    server = serve(*kind_args(worker), *files.flags, "--log-level", "debug")
    context = authority.client_context()
    hello = client_hello(context)
    stalled = []
    for number in range(200):
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S)
        sock.sendall([b"", hello[:1], hello[:50], hello][number % 4])
        stalled.append(sock)
    with Connection(server.port, context) as connection:
        assert connection.facts()["scheme"] == "https"
    for sock in stalled[::10]:  # a reset in the midst of it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    with TLSLoad(server.port, context) as load:
        load.wait_answers(100)
        for number, sock in enumerate(stalled):
            if number % 10:
                while sock.recv(65536):  # until the server has given it up
                    pass
                sock.close()
    assert load.failures == []

    again = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    for sock in again:
        sock.sendall(hello[:50])
    with Connection(server.port, context) as connection:
        connection.facts()
    mark = server.mark()
    assert server.stop() == 0
    assert "killed" not in server.log()[mark:], "a stop waits for no handshake"
    for sock in again:
        sock.close()
    assert_no_noise(server)


def client_hello(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_garbage(serve: Serve, authority: Authority, files: Files, worker: str) -> None:
    server = serve(*kind_args(worker), *files.flags, "--log-level", "debug")
    context = authority.client_context()
    hello = client_hello(context)
    chance = random.Random(1)
    damaged = [bytes(b ^ (chance.random() < 0.02) for b in hello) for _ in range(30)]
    for data in [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
        b"\x80\x2e\x01\x00\x02",  # SSL 2
        bytes(2000),
        *(chance.randbytes(500) for _ in range(30)),
        *damaged,
    ]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as sock:
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                while answer := sock.recv(65536):
                    assert b"HTTP/1.1 200" not in answer
            except OSError:
                continue  # cut off in the midst of it
    server.wait_log("http request")
    # Damage after the handshake.
    with Connection(server.port, context) as connection:
        with socket.socket(fileno=os.dup(connection.socket.fileno())) as raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + b"y" * 32)
        with pytest.raises((OSError, ValueError)):
            connection.get()
    with Connection(server.port, context) as connection:
        assert connection.facts()["scheme"] == "https"
    server.stop()
    assert_no_noise(server)


def test_plain_http_is_told_that_this_is_https(serve: Serve, files: Files, worker: str) -> None:
    server = serve(*kind_args(worker), *files.flags)
    for _ in range(3):
        answer = requests.get(f"http://localhost:{server.port}/", timeout=DEADLINE_S)
        assert answer.status_code == 400
        assert answer.text == "The plain HTTP request was sent to an HTTPS port\n"
    server.wait_log("127.0.0.1 sent a plain HTTP request to an HTTPS port: 400$")
    server.stop()
    assert server.log().count("plain HTTP") == 1
    assert_no_noise(server)


def test_plain_http_and_asyncios_own_loop(serve: Serve, files: Files) -> None:
    server = serve(*kind_args("async"), *files.flags, "--loop", "asyncio")
    answer = requests.get(f"http://localhost:{server.port}/", timeout=DEADLINE_S)
    assert answer.status_code == 400
    server.stop()
    assert_no_noise(server)


# --- the certificate's life -----------------------------------------------------------------------


def test_a_new_certificate_under_load(
    serve: Serve, authority: Authority, files: Files, worker: str
) -> None:
    server = serve(*kind_args(worker), *files.flags, "-w", "2", ready=2)
    context = authority.client_context()
    with TLSLoad(server.port, context) as load:
        load.wait_answers(50)
        for _ in range(2):
            old = server.wait_workers(2)
            before = set(load.fingerprints)
            authority.issue("server")  # into the same files
            server.signal(signal.SIGHUP)
            server.wait_replaced(old)
            load.wait_answers(50)
            assert len(set(load.fingerprints) - before) == 1
            with Connection(server.port, context) as connection:
                assert connection.fingerprint not in before
    assert load.failures == []
    assert len(load.fingerprints) == 3
    assert_no_noise(server)


def test_a_bad_certificate_on_reload(
    serve: Serve, authority: Authority, files: Files, tmp_path: Path, worker: str
) -> None:
    config = tmp_path / "servo.toml"
    good = f'certfile = "{files.cert}"\nkeyfile = "{files.key}"\n'
    config.write_text(good)
    server = serve(*kind_args(worker), "-w", "2", ready=2)
    old = server.wait_workers(2)
    context = authority.client_context()
    cert, key = files.cert.read_bytes(), files.key.read_bytes()
    other = authority.issue("other")

    def break_it(change: Callable[[], object], says: str) -> None:
        mark = server.mark()
        change()
        server.signal(signal.SIGHUP)
        server.wait_log(says, mark)
        server.wait_log("(?i)rolled back|old workers|stay", mark)
        assert server.wait_workers(2) == old
        load.wait_answers(20)
        files.cert.write_bytes(cert)
        files.key.write_bytes(key)
        config.write_text(good)

    with TLSLoad(server.port, context) as load:
        load.wait_answers(20)
        break_it(lambda: files.cert.write_bytes(b"nothing"), r"server\.pem contains no certificate")
        break_it(files.cert.unlink, r"can't read .*server\.pem: No such file")
        break_it(
            lambda: files.key.write_bytes(other.key.read_bytes()),
            r"the key in .*server\.key does not belong to the certificate",
        )
        break_it(lambda: config.write_text(f"{good}ciphers = 'NONSENSE'\n"), "ciphers")
        break_it(lambda: config.write_text(""), "a reload can't turn TLS off")
    assert load.failures == []
    assert len(load.fingerprints) == 1

    server.signal(signal.SIGHUP)
    server.wait_replaced(old)


def test_plaintext_is_not_turned_into_tls_by_a_reload(
    serve: Serve, files: Files, tmp_path: Path
) -> None:
    server = serve(*kind_args("sync"))
    (worker,) = server.wait_workers(1)
    (tmp_path / "servo.toml").write_text(f'certfile = "{files.cert}"\nkeyfile = "{files.key}"\n')
    server.signal(signal.SIGHUP)
    server.wait_log("a reload can't turn TLS on")
    assert server.wait_workers(1) == [worker]
    assert requests.get(server.url, timeout=DEADLINE_S).json()["scheme"] == "http"


def test_what_can_not_be_used_ends_the_start(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.issue("good"), authority.issue("other")
    locked = authority.issue("locked", password=b"s3cret")
    (tmp_path / "wrong").write_text("wrong")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    certificate = ("--certfile", str(good.cert))
    for flags, words in [
        (("--certfile", "none.pem"), ["certfile", "none.pem", "No such file"]),
        (("--certfile", "garbage.pem"), ["garbage.pem", "no certificate"]),
        (certificate, ["good.pem", "no private key"]),
        ((*certificate, "--keyfile", "none.key"), ["none.key", "No such file"]),
        ((*certificate, "--keyfile", str(other.key)), ["other.key", "does not belong to"]),
        (locked.flags, ["locked.key", "encrypted", "SERVO_KEYFILE_PASSWORD"]),
        (
            (*locked.flags, "--keyfile-password-file", "wrong"),
            ["locked.key", "wrong password"],
        ),
        ((*good.flags, "--cert-reqs", "2"), ["cert_reqs", "ca_certs"]),
        ((*good.flags, "--ca-certs", "garbage.pem", "--cert-reqs", "2"), ["garbage.pem"]),
        (("--keyfile", str(good.key)), ["certfile"]),
    ]:
        for extra in ((), ("--check-config",)):
            port = ("--bind", "127.0.0.1:0")
            done = run_servo(*kind_args("sync"), *flags, *port, *extra, cwd=tmp_path)
            assert done.returncode == 1, (flags, done)
            assert "Traceback" not in done.stderr
            assert all(word in done.stderr for word in words), done.stderr


def test_an_encrypted_key(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    locked = authority.issue("locked", password=b"s3cret")
    (tmp_path / "password").write_text("s3cret\n")
    by_file = (*locked.flags, "--keyfile-password-file", "password")
    context = authority.client_context()
    for server in (
        serve(*kind_args("sync"), *by_file),
        serve(*kind_args("sync"), *locked.flags, env={"SERVO_KEYFILE_PASSWORD": "s3cret"}),
    ):
        with Connection(server.port, context) as connection:
            assert connection.facts()["scheme"] == "https"
        # The arbiter reads key and password again, though the variable has left its environment.
        server.signal(signal.SIGHUP)
        server.wait_log(r"reload \(SIGHUP\) finished")
        with Connection(server.port, context) as connection:
            assert connection.facts()["scheme"] == "https"
        assert "s3cret" not in server.log()
    shown = run_servo("--print-config", cwd=tmp_path, env={"SERVO_KEYFILE_PASSWORD": "s3cret"})
    assert "s3cret" not in shown.stdout
    assert "SERVO_KEYFILE_PASSWORD" in shown.stdout


def test_an_expired_certificate_is_served_with_a_warning(
    serve: Serve, authority: Authority
) -> None:
    old = authority.issue("old", days=-1, age_days=9)
    server = serve(*kind_args("sync"), *old.flags)
    server.wait_log(r"WARNING.*old\.pem expired on")
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        Connection(server.port, authority.client_context())


def test_gunicorns_hook(serve: Serve, authority: Authority, files: Files, tmp_path: Path) -> None:
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(
        f"certfile, keyfile = {str(files.cert)!r}, {str(files.key)!r}\n"
        "ssl_version = 2\n"
        "do_handshake_on_connect = True\n"
        "def ssl_context(conf, default_ssl_context_factory):\n"
        "    import ssl\n"
        "    context = default_ssl_context_factory()\n"
        "    context.minimum_version = ssl.TLSVersion.TLSv1_3\n"
        "    return context\n"
    )
    server = serve(*kind_args("sync"))
    assert "New, TLSv1.3" in s_client(server.port)
    assert "protocol version" in s_client(server.port, "-tls1_2")
    server.wait_log("gunicorn's ssl_version .*tls_minimum_version")
    server.wait_log("gunicorn's do_handshake_on_connect")
    (worker,) = server.wait_workers(1)
    config.write_text(config.read_text().replace("return context", "raise OSError('no safe')"))
    mark = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_log("ssl_context hook failed: no safe", mark)
    assert server.wait_workers(1) == [worker]


def test_a_self_signed_certificate(serve: Serve, tmp_path: Path, kind: str) -> None:
    server = serve(*kind_args(kind), "--self-signed", "-w", "2", ready=2)
    server.wait_log("WARNING.*development")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with Connection(server.port, context) as connection:
        assert connection.facts()["scheme"] == "https"
        shown = connection.fingerprint
    old = server.wait_workers(2)
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    with Connection(server.port, context) as connection:
        assert connection.fingerprint == shown, "a browser's exception holds over a reload"


def test_without_trustme_a_self_signed_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trustme.py").write_text("raise ImportError('not here')\n")
    env: dict[str, Any] = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = run_servo(*kind_args("sync"), "--self-signed", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "servo-server[dev-tls]" in done.stderr


def test_only_the_arbiter_reads_the_files(
    serve: Serve, authority: Authority, files: Files, worker: str
) -> None:
    """They may be root's alone, and a crashed worker is replaced whatever became of them."""
    server = serve(*kind_args(worker), *files.flags)
    (first,) = server.wait_workers(1)
    files.cert.unlink()
    files.key.unlink()
    server.signal_worker(first, signal.SIGKILL)
    server.wait_replaced([first])
    with Connection(server.port, authority.client_context()) as connection:
        assert connection.facts()["pid"] != first
