"""Servo with a real nginx and a real HAProxy, with the configurations of the examples."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from integration.conftest import CLASSES
from integration.proxies import HAPROXY, NGINX, OPENSSL, Proxy, start_haproxy, start_nginx
from integration.server import APPS, DEADLINE_S, Server, free_port
from integration.test_metrics import serve_with_metrics

Serve = Callable[..., Server]

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(OPENSSL is None, reason="openssl, for a certificate, is not installed"),
]

# Of the loopback network, but not the proxy's own address: it is not trusted itself.
CLIENT = "127.0.0.2"
# What a client may try to be believed in.
LIES = {
    "X-Forwarded-For": "203.0.113.66",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Ssl": "on",
    "X-Forwarded-Protocol": "ssl",
    "Forwarded": "for=203.0.113.67;proto=https;host=evil.example",
}
BIG = bytes(range(256)) * 80_000


@pytest.fixture
def proxies() -> Iterator[list[Proxy]]:
    started: list[Proxy] = []
    yield started
    for proxy in started:
        proxy.stop()
        print(f"--- {proxy.log.name} ---\n{proxy.log.read_text()[-5000:]}")


def browser(port: int, scheme: str = "http") -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=CLIENT, verify=False)
    return httpx.Client(transport=transport, base_url=f"{scheme}://127.0.0.1:{port}", timeout=60)


def app_args(worker_class: str) -> tuple[str, ...]:
    module, flags = CLASSES[worker_class]
    return (f"{APPS / module}.py:app", *flags)


def told(client: httpx.Client, **headers: str) -> dict[str, Any]:
    """What the app is told of a request, by the same names for WSGI and ASGI."""
    response = client.get("/describe", headers=headers)
    assert response.status_code == 200, response.text
    values = response.json()
    if "wsgi.url_scheme" in values:
        return {
            "client": values["REMOTE_ADDR"],
            "port": int(values["REMOTE_PORT"]),
            "scheme": values["wsgi.url_scheme"],
            "host": values["HTTP_HOST"],
            "root": values["SCRIPT_NAME"],
        }
    return {
        "client": values["client"][0],
        "port": values["client"][1],
        "scheme": values["scheme"],
        "host": values["host"],
        "root": values["root_path"],
    }


def check_identity(proxy: Proxy) -> None:
    for port, scheme in ((proxy.port, "http"), (proxy.tls_port, "https")):
        with browser(port, scheme) as client:
            for lies in ({}, LIES):
                seen = told(client, **lies)
                seen.pop("port")
                assert seen == {
                    "client": CLIENT,
                    "scheme": scheme,
                    "host": f"127.0.0.1:{port}",
                    "root": "",
                }


def check_bodies(proxy: Proxy) -> None:
    digest = hashlib.sha256(BIG).hexdigest()
    with browser(proxy.port) as client:
        assert client.post("/upload", content=BIG).json()["sha256"] == digest
        # An iterator has no length: it goes out chunked.
        pieces = (BIG[start : start + 100_000] for start in range(0, len(BIG), 100_000))
        assert client.post("/upload", content=pieces).json()["sha256"] == digest
        assert client.post("/echo", content=iter([b"a", b"b"])).content == b"ab"
        assert len(client.get("/stream?bytes=20000000").content) == 20_000_000
        assert client.head("/").headers["content-length"] == "2"
        assert client.get("/nowhere").status_code == 404


@needs_nginx
def test_behind_nginx(
    serve: Serve, tmp_path: Path, worker_class: str, proxies: list[Proxy]
) -> None:
    """Over a Unix socket, and through a reload."""
    path = tmp_path / "app.sock"
    server = serve(*app_args(worker_class), "-w", "2", "--bind", f"unix:{path}", ready=2)
    proxy = start_nginx(tmp_path, f"unix:{path}")
    proxies.append(proxy)
    check_identity(proxy)
    check_bodies(proxy)
    with browser(proxy.port) as client:
        old = server.worker_pids()
        server.signal(signal.SIGHUP)
        for _ in range(200):
            assert client.get("/").text == "ok"
        server.wait_replaced(old)
        assert client.get("/").text == "ok"


@needs_nginx
def test_nginx_that_does_not_buffer(
    serve: Serve, tmp_path: Path, worker_class: str, proxies: list[Proxy]
) -> None:
    """Chunked to the upstream as well, over TCP."""
    server = serve(*app_args(worker_class), "-w", "1")
    proxy = start_nginx(
        tmp_path, f"127.0.0.1:{server.port}", "proxy_request_buffering off; proxy_buffering off;"
    )
    proxies.append(proxy)
    check_identity(proxy)
    check_bodies(proxy)


@needs_haproxy
def test_behind_haproxy(
    serve: Serve, tmp_path: Path, worker_class: str, proxies: list[Proxy]
) -> None:
    server = serve(*app_args(worker_class), "-w", "1")
    proxy = start_haproxy(tmp_path, f"127.0.0.1:{server.port}")
    proxies.append(proxy)
    check_identity(proxy)
    check_bodies(proxy)


@pytest.mark.parametrize(
    "start",
    [pytest.param("nginx", marks=needs_nginx), pytest.param("haproxy", marks=needs_haproxy)],
)
def test_connections_to_the_upstream_are_kept(
    serve: Serve, tmp_path: Path, worker_class: str, start: str, proxies: list[Proxy]
) -> None:
    """A proxy that is not trusted is the client itself: its port tells its connections apart."""
    server = serve(*app_args(worker_class), "-w", "1", "--forwarded-allow-ips", "10.0.0.0/8")
    starter = start_nginx if start == "nginx" else start_haproxy
    proxy = starter(tmp_path, f"127.0.0.1:{server.port}")
    proxies.append(proxy)
    with browser(proxy.port) as client:
        seen = [told(client, **LIES) for _ in range(30)]
    assert {(s["client"], s["scheme"]) for s in seen} == {("127.0.0.1", "http")}
    # One is what a single client needs; a health check or a reload of nginx may cost another.
    assert len({s["port"] for s in seen}) <= 3


@pytest.mark.parametrize(
    "start",
    [pytest.param("nginx", marks=needs_nginx), pytest.param("haproxy", marks=needs_haproxy)],
)
def test_the_time_in_queues_is_the_proxys(
    serve: Serve, tmp_path: Path, start: str, proxies: list[Proxy]
) -> None:
    """A client's own claims are overwritten."""
    server, metrics = serve_with_metrics(serve, *app_args("async"), "-w", "1")
    proxy = (start_nginx if start == "nginx" else start_haproxy)(
        tmp_path, f"127.0.0.1:{server.port}"
    )
    proxies.append(proxy)
    lies = {name: f"t={time.time() - 500:.3f}" for name in ("X-Request-Start", "X-Queue-Start")}
    with browser(proxy.port) as client:
        for headers in ({}, {}, lies, lies):
            assert client.get("/", headers=headers).text == "ok"
    metrics.wait_value(4, "servo_requests_total", method="GET", status="2xx")
    assert metrics.value("servo_request_queue_seconds_count") == 4
    assert 0 <= metrics.value("servo_request_queue_seconds_sum") < 4 * DEADLINE_S


@needs_haproxy
@pytest.mark.parametrize(
    ("option", "mode"),
    [("send-proxy", "v1"), ("send-proxy-v2", "v2"), ("send-proxy-v2-ssl-cn", "auto")],
)
def test_proxy_protocol_of_haproxy(
    serve: Serve, tmp_path: Path, worker_class: str, option: str, mode: str, proxies: list[Proxy]
) -> None:
    server = serve(*app_args(worker_class), "-w", "1", "--proxy-protocol", mode)
    extra = "proxy-v2-options ssl,cert-cn,unique-id,crc32c" if option.endswith("cn") else ""
    proxy = start_haproxy(tmp_path, f"127.0.0.1:{server.port} {option} {extra}")
    proxies.append(proxy)
    with browser(proxy.port) as client:
        seen = told(client)
        assert seen["client"] == CLIENT
        assert seen["port"] > 1024
        assert client.post("/echo", content=iter([b"a", b"b"])).content == b"ab"
    check_bodies(proxy)
    # Whoever comes around the proxy has no header to show, and is refused.
    with httpx.Client(trust_env=False, timeout=30) as direct:
        assert direct.get(f"{server.url}/").status_code == 400


@needs_haproxy
def test_proxy_protocol_from_a_stranger(
    serve: Serve, tmp_path: Path, worker_class: str, proxies: list[Proxy]
) -> None:
    server = serve(
        *app_args(worker_class), "--proxy-protocol", "v2", "--proxy-allow-ips", "10.0.0.0/8"
    )
    proxy = start_haproxy(tmp_path, f"127.0.0.1:{server.port} send-proxy-v2")
    proxies.append(proxy)
    with browser(proxy.port) as client:
        assert client.get("/").status_code in (403, 502)


@needs_nginx
def test_nginx_finds_no_server(tmp_path: Path, proxies: list[Proxy]) -> None:
    """The tests above could not pass without Servo."""
    proxy = start_nginx(tmp_path, f"127.0.0.1:{free_port()}")
    proxies.append(proxy)
    with browser(proxy.port) as client:
        assert client.get("/").status_code == 502


# As gunicorn's documentation shows it: other fields go through as the client sent them.
GUNICORN_LOCATION = """
    proxy_pass http://app;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header Host $http_host;
"""
CHOSEN_BY_CLIENT = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Prefix": "/evil",
    "Forwarded": "host=evil.example",
}


@needs_nginx
def test_behind_an_nginx_made_for_gunicorn(
    serve: Serve, tmp_path: Path, worker_class: str, proxies: list[Proxy]
) -> None:
    """A client must not choose host or prefix, from which apps build the links that they send."""
    path = tmp_path / "app.sock"
    serve(*app_args(worker_class), "-w", "1", "--bind", f"unix:{path}")
    proxy = start_nginx(tmp_path, f"unix:{path}", location=GUNICORN_LOCATION)
    proxies.append(proxy)
    with browser(proxy.port) as client:
        seen = told(client, **CHOSEN_BY_CLIENT)
    seen.pop("port")
    host = f"127.0.0.1:{proxy.port}"
    assert seen == {"client": CLIENT, "scheme": "http", "host": host, "root": ""}


@pytest.mark.parametrize("fields", [None, "for,proto,host,prefix", "", "proto"])
def test_what_a_trusted_peer_is_believed_about(
    serve: Serve, worker_class: str, fields: str | None
) -> None:
    flags = () if fields is None else ("--forwarded-fields", fields)
    server = serve(*app_args(worker_class), "-w", "1", *flags)
    claims = {**CHOSEN_BY_CLIENT, "X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        seen = told(client, **claims)
    believed = ["for", "proto"] if fields is None else fields.split(",")
    assert seen["client"] == ("192.0.2.7" if "for" in believed else "127.0.0.1")
    assert seen["scheme"] == ("https" if "proto" in believed else "http")
    own = f"127.0.0.1:{server.port}"
    assert seen["host"] == ("evil.example" if "host" in believed else own)
    assert seen["root"] == ("/evil" if "prefix" in believed else "")
