"""HTTP/2 with real clients: curl, h2load, httpx, a browser, and raw frames."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from authority import Authority, Files
from h2cases import MALFORMED, REFUSED
from h2frames import (
    CANCEL,
    GET,
    INTERNAL_ERROR,
    NO_ERROR,
    POST,
    PREFACE,
    PROTOCOL_ERROR,
    RST_STREAM,
    block,
    data,
    frame,
    head,
    reset,
    settings,
)

from integration.conftest import CLASSES, Serve
from integration.h2_client import ASGI, H2C, HTTP2_APP, WSGI, Client, offers_h2
from integration.server import APPS, DEADLINE_S, Server, assert_no_noise, memory, wait_for
from integration.turmoil import connect as control

pytestmark = pytest.mark.slow


@pytest.fixture(params=["asgi", "wsgi"])
def server(request: pytest.FixtureRequest, serve: Serve) -> Server:
    return serve(*(ASGI if request.param == "asgi" else WSGI))


def run(*command: str, stdin: bytes = b"") -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, timeout=DEADLINE_S * 2, check=False
    )
    assert done.returncode == 0, (command, done.returncode, done.stderr[-2000:])
    return done.stdout.decode()


def curl(*arguments: str, stdin: bytes = b"") -> str:
    program = shutil.which("curl")
    if program is None or "HTTP2" not in run(program, "--version"):
        pytest.skip("no curl with HTTP/2 here")
    return run(program, "-sS", "-m", "30", *arguments, stdin=stdin)


# --- clients --------------------------------------------------------------------------------------


def test_curl(server: Server) -> None:
    known = ("--http2-prior-knowledge", "-w", " %{http_version} %{response_code}")
    assert curl(*known, server.url + "/") == "ok 2 200"
    body = os.urandom(3_000_000)
    answer = curl(*known, "--data-binary", "@-", server.url + "/upload", stdin=body)
    assert json.loads(answer.removesuffix(" 2 200"))["bytes"] == len(body)
    assert curl(*known, "-o", os.devnull, server.url + "/bulk?bytes=5000000") == " 2 200"
    streamed = curl(*known, server.url + "/stream?bytes=700000")
    assert streamed == "." * 700_000 + " 2 200"
    assert curl(*known, "-I", server.url + "/").endswith(" 2 200")
    assert curl(*known, server.url + "/nowhere").endswith(" 2 404")
    assert curl("-w", " %{http_version}", server.url + "/") == "ok 1.1"
    assert_no_noise(server)


def test_curl_upgrades(serve: Serve) -> None:
    server = serve(HTTP2_APP, "--http2-cleartext", "upgrade")
    shown = curl(
        "--http2", "-w", "\n%{http_version}", f"{server.url}/scope", f"{server.url}/item?1"
    )
    scope = json.loads(shown.split("\n")[0])
    assert scope["http_version"] == "2"
    assert {name for name, _ in scope["headers"]} == {"host", "user-agent", "accept"}
    assert shown.split("\n")[1:] == ["2item 1", "2"]
    # A body can't come along: RFC 9110 section 7.8 lets a server go on as it is.
    shown = curl("--http2", "-d", "x" * 10, "-w", " %{http_version}", f"{server.url}/upload")
    assert shown == "10 1.1"
    # With prior knowledge it is not asked for.
    with pytest.raises(AssertionError):
        curl("--http2-prior-knowledge", f"{server.url}/")
    assert_no_noise(server)


def test_curl_sees_hints_and_trailers(serve: Serve) -> None:
    server = serve(HTTP2_APP, *H2C)
    shown = curl("--http2-prior-knowledge", "-i", f"{server.url}/hints")
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[:2] == ["HTTP/2 103", "link: </style.css>; rel=preload; as=style"]
    assert "HTTP/2 200" in lines
    assert "hinted" in shown
    assert "x-sum: 1" in shown


def test_h2load(server: Server) -> None:
    program = shutil.which("h2load")
    if program is None:
        pytest.skip("no h2load here (Debian: apt-get install nghttp2-client)")
    shown = run(program, "-n", "3000", "-c", "10", "-m", "20", server.url + "/")
    assert "3000 succeeded, 0 failed, 0 errored" in shown
    shown = run(program, "-n", "60", "-c", "3", "-m", "10", server.url + "/bulk?bytes=1000000")
    assert "60 succeeded, 0 failed, 0 errored" in shown
    assert_no_noise(server)


def test_over_tls(serve: Serve, authority: Authority, files: Files) -> None:
    server = serve(HTTP2_APP, *files.flags)
    url = f"https://localhost:{server.port}"
    ca = ("--cacert", str(authority.path))
    assert curl(*ca, "-w", " %{http_version}", f"{url}/item?1") == "item 1 2"
    assert curl(*ca, "--http1.1", "-w", " %{http_version}", f"{url}/item?1") == "item 1 1.1"
    context = ssl.create_default_context(cafile=str(authority.path))
    with httpx.Client(http1=False, http2=True, verify=context) as client:
        scope = client.get(f"{url}/scope").json()
        assert (scope["http_version"], scope["scheme"]) == ("2", "https")
        assert scope["extensions"]["tls"]["tls_version"] == 0x0304
        answers = [client.post(f"{url}/upload", content=b"x" * n) for n in (0, 1, 200_000)]
        assert [answer.text for answer in answers] == ["0", "1", "200000"]
        assert {answer.http_version for answer in answers} == {"HTTP/2"}
    program = shutil.which("h2load")
    if program is not None:
        shown = run(program, "-n", "500", "-c", "5", "-m", "10", f"{url}/item?1")
        assert "500 succeeded, 0 failed, 0 errored" in shown
    assert_no_noise(server)


@pytest.mark.parametrize("kind", ["sync", "thread", "async"])
@pytest.mark.parametrize("offered", [None, "h1"])
def test_what_tls_offers(
    serve: Serve, authority: Authority, files: Files, kind: str, offered: str | None
) -> None:
    module, flags = CLASSES[kind]
    limits = ("--http-protocols", offered) if offered else ()
    server = serve(f"{APPS / module}.py:app", *flags, *files.flags, *limits)
    context = offers_h2(ssl.create_default_context(cafile=str(authority.path)))
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as sock,
    ):
        chosen = sock.selected_alpn_protocol()
    assert chosen == ("h2" if kind == "async" and offered is None else "http/1.1")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"),
    *("--no-first-run", "--no-proxy-server", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--ignore-certificate-errors"),
    "--remote-debugging-port=0",  # without it the browser ends once the page has loaded
)


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    browsers: list[subprocess.Popen[bytes]] = []

    def start(url: str) -> None:
        with (tmp_path / "chromium.log").open("wb") as log:
            browsers.append(
                subprocess.Popen(
                    [CHROMIUM, *CHROMIUM_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", url],
                    env={**os.environ, "HOME": str(tmp_path)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    yield start
    for browser in browsers:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait(30)
        print((tmp_path / "chromium.log").read_text(errors="replace")[-3000:])


def test_a_browser(serve: Serve, files: Files, browse: Callable[[str], None]) -> None:
    server = serve(HTTP2_APP, *files.flags, "--access-logfile", "-")
    browse(f"https://localhost:{server.port}/")
    said = server.wait_log(r"^the page says: (.*)$", deadline_s=90)
    assert said[1] == "items upload 404 h2"
    # It has cancelled one download; that stream's app is told, and no other's.
    server.wait_log("the endless body has ended")
    wait_for(lambda: server.log().count("GET /item?") == 100, "the log's lines")
    assert_no_noise(server)


def test_a_browser_during_reloads(
    serve: Serve, files: Files, browse: Callable[[str], None]
) -> None:
    server = serve(HTTP2_APP, *files.flags, "-w", "2", "--access-logfile", "-", ready=2)
    browse(f"https://localhost:{server.port}/steady")
    for _ in range(3):
        since = server.mark()
        wait_for(lambda since=since: server.log().count("/work?", since) > 50, "requests", 90)  # type: ignore[misc]
        old = server.worker_pids()
        server.signal(signal.SIGHUP)
        server.wait_replaced(old)
    (server.cwd / "enough").touch()
    said = server.wait_log(r"^the page says: (\d+) answered, lost: (.*)$", deadline_s=90)
    assert int(said[1]) > 150
    assert said[2] == ""
    assert_no_noise(server)


# --- who may, without TLS -------------------------------------------------------------------------


def first_bytes(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as sock:
        sock.sendall(sent)
        received = b""
        while part := sock.recv(65536):
            received += part
        return received


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--http2-cleartext", "off"),
        ("--http2-cleartext", "upgrade"),
        (*H2C, "--forwarded-allow-ips", "192.0.2.1"),
        (*H2C, "--http-protocols", "h1"),
    ],
)
def test_the_preface_is_no_http_1_request(serve: Serve, flags: tuple[str, ...]) -> None:
    server = serve(f"{APPS / 'asgi_app.py'}:app", *flags)
    answer = first_bytes(server.port, PREFACE + settings())
    assert answer.startswith(b"HTTP/1.1 505 ")


def test_behind_a_proxy_protocol_header(serve: Serve) -> None:
    """Who may speak for others may speak HTTP/2 for them, whoever they are."""
    server = serve(HTTP2_APP, *H2C, "--proxy-protocol", "v1")
    before = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n"
    with Client(server.port, before=before) as client:
        scope = json.loads(client.get("/scope").body)
        assert scope["client"] == ["192.0.2.7", 4711]


def test_a_trusted_proxy_speaks_for_its_client(serve: Serve) -> None:
    server = serve(HTTP2_APP, *H2C)
    with Client(server.port) as client:
        told = (("x-forwarded-for", "192.0.2.9"), ("x-forwarded-proto", "https"))
        # Not believed, as a client chooses them behind most proxies.
        chosen = (("x-forwarded-host", "evil.example"), ("x-forwarded-prefix", "/evil"))
        more = ("forwarded", "host=evil.example")
        scope = json.loads(client.get("/scope", *told, *chosen, more).body)
        assert (scope["client"][0], scope["scheme"]) == ("192.0.2.9", "https")
        assert scope["root_path"] == ""
        assert "evil.example" not in dict(scope["headers"])["host"]
        assert client.get("/scope", ("forwarded", "for=;;=")).status == 400
        assert client.get("/item?x").body == b"item x"


# --- RFC 9113 section 8, on a connection that goes on ---------------------------------------------


def test_malformed_requests_end_only_themselves(serve: Serve) -> None:
    server = serve(*ASGI, "--access-logfile", "-")
    with Client(server.port) as client:
        waiting = client.ask("/slow?s=0.5")
        for name, fields in MALFORMED.items():
            number = client.ask_with(fields)
            assert client.answer(number).reset == PROTOCOL_ERROR, name
            assert client.answers[number].status == 0, name
        for name, (status, fields) in REFUSED.items():
            if len(block(fields)) < 16_000:
                assert client.answer(client.ask_with(fields)).status == status, name
        assert client.answer(waiting).body == b"slow"
        assert client.goaways == []
    wait_for(lambda: len(re.findall(r'" 400 ', server.log())) > len(MALFORMED), "the log's lines")
    assert_no_noise(server)


def test_malformed_bodies_end_only_themselves(serve: Serve) -> None:
    server = serve(*ASGI)
    with Client(server.port) as client:
        length = ("content-length", "5")
        echo = [*POST[:3], (":path", "/echo"), length]
        for parts in (
            [(b"abcdef", False)],
            [(b"abcd", True)],
            [(b"abc", False), (b"def", True)],
        ):
            number = client.ask_with(echo, end=False)
            client.send(b"".join(data(number, part, end=end) for part, end in parts))
            assert client.answer(number).reset == PROTOCOL_ERROR
        number = client.ask_with(echo, end=False)
        client.send(data(number, b"abcde") + head(number, [("a", "b")], end=False))
        assert client.answer(number).reset == PROTOCOL_ERROR
        number = client.ask_with(echo, end=False)
        client.send(data(number, b"abc") + data(number, b"de") + head(number, [("a", "b")]))
        assert client.answer(number).body == b"abcde"
        assert client.goaways == []
    assert_no_noise(server)


# --- streams --------------------------------------------------------------------------------------


def test_streams_are_served_at_the_same_time(server: Server) -> None:
    with Client(server.port) as client:
        slow = [client.ask("/slow?s=1") for _ in range(4)]
        quick = [client.ask("/pid") for _ in range(20)]
        for number in quick:
            assert client.answer(number).status == 200
        assert not any(client.answers[number].ended for number in slow)
        for number in slow:
            assert client.answer(number).body == b"slow"


def test_a_client_that_takes_nothing_of_one_stream(serve: Serve) -> None:
    server = serve(*ASGI)
    [pid] = server.worker_pids()
    with Client(server.port, {4: 1000}) as client:
        before = memory(pid)
        stuck = [client.ask("/endless") for _ in range(20)]
        client.wait(lambda: all(len(client.answers[n].body) == 1000 for n in stuck), "beginnings")
        for _ in range(50):
            assert client.get("/").body == b"ok"
        # Their apps wait: what they have sent and nobody takes is bounded.
        assert memory(pid) - before < 20_000_000
        client.send(reset(stuck[0]))
        server.wait_log("the endless body has ended")
        assert client.get("/").body == b"ok"
    wait_for(lambda: server.log().count("the endless body has ended") == 20, "all apps' ends")
    assert_no_noise(server)


def test_a_client_that_takes_nothing_at_all(serve: Serve) -> None:
    """Windows wide open, but the socket is not read: the apps wait, others are served."""
    server = serve(*ASGI, "--send-timeout", "2")
    [pid] = server.worker_pids()
    before = memory(pid)
    with Client(server.port) as stuck, Client(server.port) as other:
        for _ in range(50):
            stuck.ask("/endless")
        for _ in range(30):
            assert other.get("/").body == b"ok"
        assert memory(pid) - before < 40_000_000
        # Those that began; the others wait behind them, unseen, and go with the connection.
        wait_for(lambda: server.log().count("the endless body has ended") >= 8, "the cut")
        with control(server) as operator:
            wait_for(lambda: not operator.request("status")["in_flight"], "the end of the others")
        assert other.get("/").body == b"ok"
    assert_no_noise(server)


def test_a_body_that_its_app_does_not_read(serve: Serve) -> None:
    server = serve(*ASGI, "--graceful-timeout", "1")
    with Client(server.port) as client:
        unread = [client.ask_with([*POST[:3], (":path", "/wait")], end=False) for _ in range(30)]
        for number in unread:
            client.send(data(number, b"x" * 16_000) * 4)
        read = client.ask_with([*POST[:3], (":path", "/upload")], end=False)

        def given() -> int:
            return 65_535 + sum(n for number, n in client.windows if number == read)

        for sent in range(0, 1_000_000, 10_000):
            client.wait(
                lambda least=sent + 10_000: given() >= least, "a window for the body that is read"
            )
            client.send(data(read, b"y" * 10_000))
        client.send(data(read, b"", end=True))
        assert json.loads(client.answer(read).body)["bytes"] == 1_000_000
        # The streams that nobody reads got no window.
        assert not [w for w in client.windows if w[0] in unread]
        for number in unread:
            client.send(reset(number))
        assert client.get("/").body == b"ok"


def test_an_answer_before_the_body(server: Server) -> None:
    with Client(server.port) as client:
        number = client.ask_with([*POST[:3], (":path", "/nowhere")], end=False)
        if "asgi_app" in server.args[0]:
            answer = client.wait(lambda: client.answers[number].reset is not None).answers[number]
            assert (answer.status, answer.ended, answer.reset) == (404, True, NO_ERROR)
        client.send(reset(number))
        assert client.get("/").body == b"ok"


def test_expectations(server: Server) -> None:
    with Client(server.port) as client:
        fields = [*POST[:3], (":path", "/upload"), ("expect", "100-continue")]
        number = client.ask_with(fields, end=False)
        client.wait(lambda: client.answers[number].heads, "100 Continue")
        assert client.answers[number].heads == [{":status": "100"}]
        client.send(data(number, b"now", end=True))
        assert json.loads(client.answer(number).body)["bytes"] == 3


def test_an_app_that_fails(server: Server) -> None:
    with Client(server.port) as client:
        late = client.answer(client.ask("/fail-late"))
        # Its end must not look like one.
        assert (late.status, late.ended, late.reset) == (200, False, INTERNAL_ERROR)
        assert client.get("/fail").status == 500
        assert client.get("/").body == b"ok"


def test_a_file(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(2_000_000))
    for app in (ASGI, WSGI):
        server = serve(*app, env={"BIG_FILE": str(path)})
        with Client(server.port) as client:
            answer = client.get("/file")
            assert answer.headers.get("content-length") == ("2000000" if app is ASGI else None)
            assert answer.body == path.read_bytes()


def test_a_reset_is_told_to_one_app_alone(serve: Serve) -> None:
    server = serve(*ASGI, "--access-logfile", "-")
    with Client(server.port) as client:
        watched, other = client.ask("/watch"), client.ask("/watch")
        client.wait(lambda: all(client.answers[n].body for n in (watched, other)), "both")
        client.send(reset(watched))
        server.wait_log("the client has gone")
        assert client.get("/").body == b"ok"
        assert server.log().count("the client has gone") == 1
        client.send(reset(other))
        wait_for(lambda: server.log().count("the client has gone") == 2, "the other's end")
    server.wait_log(r'"GET /watch HTTP/2" 200 5 ')


def test_concurrent_streams_are_bounded(serve: Serve) -> None:
    server = serve(*ASGI, "--http2-max-concurrent-streams", "5")
    with Client(server.port) as client:
        client.wait(lambda: client.settings)
        assert client.settings[3] == 5
        numbers = [client.ask("/watch") for _ in range(8)]
        client.wait(lambda: sum(client.answers[n].reset == 7 for n in numbers) == 3, "refusals")
        assert client.goaways == []
        client.send(reset(numbers[0]))
        assert client.get("/").body == b"ok"


def test_too_many_requests_at_a_time(serve: Serve) -> None:
    server = serve(*ASGI, "--limit-concurrency", "3", "--access-logfile", "-")
    with Client(server.port) as client:
        numbers = [client.ask("/slow?s=1") for _ in range(5)]
        statuses = sorted(client.answer(number).status for number in numbers)
        assert statuses == [200, 200, 200, 503, 503]
        refused = next(a for a in client.answers.values() if a.status == 503)
        assert refused.headers["retry-after"] == "1"
        assert client.get("/").body == b"ok"


# --- for operators --------------------------------------------------------------------------------


def test_hooks_and_access_log(serve: Serve, tmp_path: Path) -> None:
    config = tmp_path / "servo.conf.py"
    config.write_text(
        "def pre_request(worker, req):\n"
        "    print('before', req.method, req.path, req.version, flush=True)\n"
        "def post_request(worker, req, environ, resp):\n"
        "    print('after', req.path, resp.status_code, resp.sent, flush=True)\n"
        "accesslog = '-'\n"
        "access_log_format = '%(r)s %(s)s %(B)s'\n"
    )
    server = serve(*ASGI, "-c", str(config))
    with Client(server.port) as client:
        client.get("/bulk?bytes=5")
        refused = client.ask_with([*GET[:3], (":path", "/a b")])
        assert client.answer(refused).status == 400
    server.wait_log(r"^before GET /bulk \(2, 0\)$")
    server.wait_log(r"^after /bulk 200 5$")
    server.wait_log(r"^GET /bulk\?bytes=5 HTTP/2 200 5$")
    server.wait_log(r"^GET /a b HTTP/\S+ 400 0$")


def test_a_wsgi_app_sees_the_version(serve: Serve) -> None:
    server = serve(*WSGI)
    with Client(server.port) as client:
        environ: dict[str, Any] = json.loads(client.get("/describe?a=b", ("x-a", "b")).body)
    assert environ["SERVER_PROTOCOL"] == "HTTP/2.0"
    assert (environ["QUERY_STRING"], environ["HTTP_HOST"]) == ("a=b", "h")
    assert environ["HTTP_X_A"] == "b"


# --- WebSocket over HTTP/2 (RFC 8441) -------------------------------------------------------------


def websocket(path: str) -> list[tuple[str, str]]:
    return [
        *((":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http")),
        *((":authority", "h"), (":path", path), ("sec-websocket-version", "13")),
    ]


def text_frame(text: bytes, opcode: int = 1) -> bytes:
    """A masked frame, with a mask of zeros."""
    return bytes((0x80 | opcode, 0x80 | len(text))) + bytes(4) + text


def test_a_websocket_on_a_stream(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "ws.py").write_text(
        "async def app(scope, receive, send):\n"
        "    if scope['type'] != 'websocket':\n"
        "        await send({'type': 'http.response.start', 'status': 200})\n"
        "        await send({'type': 'http.response.body', 'body': b'plain'})\n"
        "        return\n"
        "    await receive()\n"
        "    if scope['path'] == '/no':\n"
        "        await send({'type': 'websocket.close'})\n"
        "        return\n"
        "    await send({'type': 'websocket.accept'})\n"
        "    while (message := await receive())['type'] == 'websocket.receive':\n"
        "        await send({'type': 'websocket.send', 'text': message['text'] * 2})\n"
        "    print('closed with', message['code'], flush=True)\n"
    )
    server = serve("ws:app", *H2C, "--lifespan", "off")
    with Client(server.port) as client:
        client.wait(lambda: client.settings)
        assert client.settings[8] == 1
        denied = client.ask_with(websocket("/no"), end=False)
        assert client.answer(denied).status == 403
        number = client.ask_with(websocket("/ws"), end=False)
        answer = client.answers[number]
        client.wait(lambda: answer.status == 200, "the handshake's answer")
        client.send(data(number, text_frame(b"ab") + text_frame(b"c")[:3]))
        client.send(data(number, text_frame(b"c")[3:]))
        client.wait(lambda: answer.body == b"\x81\x04abab\x81\x02cc", "echoes")
        assert client.get("/plain").body == b"plain"
        client.send(data(number, text_frame(b"\x03\xe9", opcode=8), end=True))
        client.wait(lambda: answer.ended, "the close")
        assert answer.body.endswith(b"\x88\x02\x03\xe9")
        server.wait_log("closed with 1001")
        # One that is open when the worker ends is told so.
        number = client.ask_with(websocket("/ws"), end=False)
        client.wait(lambda: client.answers[number].status == 200)
        server.signal(signal.SIGHUP)
        client.wait(lambda: client.answers[number].body[2:4] == b"\x03\xf4", "1012")
        client.send(data(number, text_frame(b"\x03\xf4", opcode=8), end=True))
        client.wait_closed()
        # A reset is a lost connection.
    with Client(server.port) as client:
        number = client.ask_with(websocket("/ws"), end=False)
        client.wait(lambda: client.answers[number].status == 200)
        client.send(frame(RST_STREAM, 0, number, CANCEL.to_bytes(4, "big")))
        server.wait_log("closed with 1006")
        assert client.get("/plain").body == b"plain"
    assert_no_noise(server)
