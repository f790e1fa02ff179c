"""Command lines of gunicorn, uvicorn, hypercorn and granian, with `servo` in the server's place."""

from __future__ import annotations

import json
import shlex
import socket
import ssl
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
import requests
from authority import Authority

from integration.conftest import Serve
from integration.server import DEADLINE_S, Server, run_servo, wait_for

pytestmark = pytest.mark.slow

APP = """
import os

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    body = f'asgi {scope["scheme"]} {scope["client"]} {scope["root_path"]} {os.getenv("SHOP")}'
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})

def create():
    return app

def wsgi(environ, start_response):
    print("a line of the app", flush=True)
    start_response("200 OK", [("Content-Length", "4")])
    return [b"wsgi"]
"""

HOOKS = """
bind = []
workers = 2
accesslog = "access.log"
access_log_format = '%(h)s "%(r)s" %(s)s %(D)s'
max_requests = 1000
max_requests_jitter = 50
worker_tmp_dir = "/dev/shm"

def say(name):
    with open("hooks.log", "a") as file:
        file.write(name + "\\n")

def on_starting(server): say("on_starting")
def on_reload(server): say("on_reload")
def when_ready(server): say("when_ready")
def pre_fork(server, worker): say("pre_fork")
def post_fork(server, worker): say("post_fork")
def post_worker_init(worker): say("post_worker_init")
def worker_int(worker): say("worker_int")
def worker_abort(worker): say("worker_abort")
def pre_request(worker, req): say("pre_request")
def post_request(worker, req, environ, resp): say("post_request")
def worker_exit(server, worker): say("worker_exit")
"""

LOG_INI = """
[loggers]
keys=root, gunicorn.error
[handlers]
keys=console
[formatters]
keys=generic
[logger_root]
level=INFO
handlers=console
[logger_gunicorn.error]
level=INFO
handlers=console
propagate=0
qualname=gunicorn.error
[handler_console]
class=StreamHandler
formatter=generic
args=(sys.stderr,)
[formatter_generic]
format=from the INI file: %(message)s
"""

LOG_JSON = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "default": {
            "()": "uvicorn.logging.DefaultFormatter",
            "fmt": "%(levelprefix)s from the JSON file: %(message)s",
            "use_colors": None,
        },
        "access": {
            "()": "uvicorn.logging.AccessFormatter",
            "fmt": '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s',
        },
    },
    "handlers": {
        "default": {
            "formatter": "default",
            "class": "logging.StreamHandler",
            "stream": "ext://sys.stderr",
        },
        "access": {
            "formatter": "access",
            "class": "logging.StreamHandler",
            "stream": "ext://sys.stdout",
        },
    },
    "loggers": {
        "uvicorn": {"handlers": ["default"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"level": "INFO"},
        "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
    },
}


class Directory:
    """A directory with an app, from which command lines are run."""

    def __init__(self, path: Path, serve: Serve) -> None:
        self.path = path
        self.serve = serve
        (path / "shop.py").write_text(APP)

    def run(self, line: str, *, bind: bool = True) -> Server:
        """Run `servo` with the words of a command line; {port} in it is replaced.

        bind   whether the line has no address
        """
        server = Server(cwd=self.path)
        words = shlex.split(line.replace("{port}", str(server.port)))
        started = self.serve(*words, cwd=self.path, bind=bind)
        if not bind:
            started.port = server.port
        return started

    def get(self, server: Server, unix: str = "", tls: ssl.SSLContext | None = None) -> str:
        """The body of the answer to `GET /`; the test fails for any status but 200."""
        client = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        client.settimeout(DEADLINE_S)
        client.connect(str(self.path / unix) if unix else ("127.0.0.1", server.port))
        if tls is not None:
            client = tls.wrap_socket(client, server_hostname="localhost")
        connection = HTTPConnection("localhost")
        connection.sock = client
        try:
            connection.request("GET", "/", headers={"X-Forwarded-For": "1.2.3.4"})
            response: HTTPResponse = connection.getresponse()
            assert response.status == 200
            return response.read().decode()
        finally:
            connection.close()


@pytest.fixture
def here(tmp_path: Path, serve: Serve) -> Directory:
    return Directory(tmp_path, serve)


# --- gunicorn -----------------------------------------------------------------------------------


def test_a_configuration_with_eleven_hooks(here: Directory) -> None:
    (here.path / "gunicorn.conf.py").write_text(HOOKS)
    server = here.run("-c gunicorn.conf.py shop:wsgi").wait_ready(2)
    assert here.get(server) == "wsgi"
    assert server.stop() == 0
    called = (here.path / "hooks.log").read_text().split()
    for name, times in {
        "on_starting": 1,
        "when_ready": 1,
        "pre_fork": 2,
        "post_fork": 2,
        "post_worker_init": 2,
        "pre_request": 1,
        "post_request": 1,
        "worker_exit": 2,
    }.items():
        assert called.count(name) == times, name
    assert '"GET / HTTP/1.1" 200' in (here.path / "access.log").read_text()


def test_uvicorns_worker_class(here: Directory) -> None:
    server = here.run("-k uvicorn.workers.UvicornWorker -w 4 shop:app").wait_ready(4)
    assert here.get(server).startswith("asgi http")


def test_preload_and_lifetimes(here: Directory) -> None:
    server = here.run("--preload --max-requests 1000 --max-requests-jitter 100 shop:wsgi")
    assert here.get(server) == "wsgi"


def test_access_log_format_capture_and_inheritance(here: Directory) -> None:
    line = "--access-logfile - --access-logformat '%(h)s %(r)s %(s)s %(b)s %(L)s' --capture-output"
    server = here.run(f"{line} -R shop:wsgi")
    assert here.get(server) == "wsgi"
    server.wait_log(r"^1\.2\.3\.4 GET / HTTP/1\.1 200 4 0\.\d+$")
    server.wait_log("^a line of the app$")
    report = server.wait_log("ignoring what has no counterpart here: .*")[0]
    assert "--enable-stdio-inheritance (a daemon's output goes to errorlog; " in report
    assert f". The command line without it: servo shop:wsgi {line} --bind 127.0.0.1:" in report


def test_statsd(here: Directory) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(DEADLINE_S)
        address = f"127.0.0.1:{statsd.getsockname()[1]}"
        server = here.run(f"--statsd-host {address} --statsd-prefix shop shop:wsgi")
        assert here.get(server) == "wsgi"
        wait_for(lambda: b"shop.gunicorn." in statsd.recv(1 << 16), "metrics")


def test_log_config_unix_socket_and_umask(here: Directory) -> None:
    (here.path / "logging.ini").write_text(LOG_INI)
    line = "--log-config logging.ini --bind unix:app.sock --umask 007 shop:wsgi"
    server = here.run(line, bind=False)
    assert here.get(server, unix="app.sock") == "wsgi"
    assert (here.path / "app.sock").stat().st_mode & 0o777 == 0o770
    server.wait_log("^from the INI file: .* is ready")


# --- uvicorn ------------------------------------------------------------------------------------


def test_host_and_port(here: Directory) -> None:
    server = here.run("shop:app --host 127.0.0.1 --port {port} --header X-Shop:open", bind=False)
    assert here.get(server).startswith("asgi http")
    assert requests.get(server.url, timeout=DEADLINE_S).headers["x-shop"] == "open"


def test_reload_patterns(here: Directory) -> None:
    (here.path / "page.html").write_text("one")
    server = here.run("shop:app --reload --reload-dir . --reload-include '*.html'")
    assert here.get(server).startswith("asgi http")
    before = server.ready_pids()
    (here.path / "page.html").write_text("two")
    server.wait_replaced(before)


def test_proxy_headers_from_everybody(here: Directory) -> None:
    server = here.run("shop:app --workers 4 --proxy-headers --forwarded-allow-ips '*'")
    assert "('1.2.3.4', 0)" in here.get(server.wait_ready(4))


def test_factory_env_file_and_app_dir(here: Directory) -> None:
    pytest.importorskip("dotenv")
    (here.path / "src").mkdir()
    (here.path / "shop.py").rename(here.path / "src" / "shop.py")
    (here.path / ".env").write_text("SHOP='open late'\n")
    server = here.run("shop:create --factory --env-file .env --app-dir src")
    assert here.get(server).endswith(" open late")


def test_unix_socket_root_path_and_no_access_log(here: Directory) -> None:
    line = "shop:app --uds app.sock --root-path /api --no-access-log"
    server = here.run(line, bind=False)
    assert " /api " in here.get(server, unix="app.sock")
    assert "GET /" not in server.log()


def test_tls_log_config_and_times(here: Directory, authority: Authority) -> None:
    files = authority.issue("server")
    (here.path / "cert.pem").write_bytes(files.cert.read_bytes())
    (here.path / "key.pem").write_bytes(files.key.read_bytes())
    (here.path / "log.json").write_text(json.dumps(LOG_JSON))
    server = here.run(
        "shop:app --ssl-keyfile key.pem --ssl-certfile cert.pem --log-config log.json "
        "--timeout-keep-alive 5 --timeout-graceful-shutdown 10 --limit-max-requests 1000"
    )
    client = ssl.create_default_context(cafile=str(authority.path))
    assert here.get(server, tls=client).startswith("asgi https")
    server.wait_log("^INFO: from the JSON file: .* is ready")


# --- hypercorn and granian ----------------------------------------------------------------------


def test_hypercorns_event_loop(here: Directory) -> None:
    line = "--bind 127.0.0.1:{port} --worker-class uvloop --workers 2 shop:app"
    assert here.get(here.run(line, bind=False).wait_ready(2)).startswith("asgi http")


def test_hypercorns_file(here: Directory) -> None:
    server = Server(cwd=here.path)
    (here.path / "hypercorn.toml").write_text(
        f"""
        bind = ["127.0.0.1:{server.port}"]
        workers = 2
        worker_class = "asyncio"
        keep_alive_timeout = 5
        graceful_timeout = 3
        accesslog = "-"
        quic_bind = ["127.0.0.1:4433"]
        """
    )
    started = here.run("-c hypercorn.toml shop:app", bind=False).wait_ready(2)
    started.port = server.port
    assert here.get(started).startswith("asgi http")
    started.wait_log(r"ignoring what has no counterpart here: quic_bind \(Servo has no HTTP/3")


def test_granian_asgi(here: Directory) -> None:
    line = "--interface asgi --host 127.0.0.1 --port {port} --workers 2 shop:app"
    assert here.get(here.run(line, bind=False).wait_ready(2)).startswith("asgi http")


def test_granian_wsgi(here: Directory) -> None:
    server = here.run("--interface wsgi --blocking-threads 4 --access-log shop:wsgi")
    assert here.get(server) == "wsgi"
    server.wait_log('"GET / HTTP/1.1" 200')


# --- what can't be used -------------------------------------------------------------------------


def test_everything_that_can_not_be_used_is_said_in_one_go(here: Directory) -> None:
    line = "shop:app --interface rsgi --runtime-mode st --static-path-mount . --port 80 -k gevent"
    result = run_servo(*shlex.split(line), cwd=here.path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "servo: error: worker_class: 'gevent' is not valid (flag --worker-class); green threads "
        "are not supported: use --worker-class thread with --threads, or an ASGI app",
        "--static-path-mount can't be used here: static files are served by a proxy, a CDN or "
        "WhiteNoise",
        "--interface rsgi can't be used here: serve the app's ASGI or WSGI interface: --interface "
        "asgi or wsgi",
        "--runtime-mode would be ignored: Servo has no runtime besides Python's; leave it out",
        "The rest of the command line: servo shop:app --bind 127.0.0.1:80",
        "Try 'servo --help'.",
    ]
