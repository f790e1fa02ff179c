"""Ten gunicorn.conf.py files that do what public ones do."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import textwrap
from pathlib import Path

import pytest
import requests
from authority import Authority

from integration import raw
from integration.conftest import Serve
from integration.server import DEADLINE_S, Server, wait_for

pytestmark = pytest.mark.slow

WSGI = """
import os

def app(environ, start_response):
    body = f"{os.getpid()} {environ['REMOTE_ADDR']}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"asgi"})
"""


def write(directory: Path, **files: str) -> None:
    """Write modules; two underscores in a name stand for a directory, and `conf` for the file."""
    for name, text in {"shop": WSGI, **files}.items():
        path = directory / (name.replace("__", "/") + ".py")
        if name == "conf":
            path = directory / "gunicorn.conf.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))


def get(server: Server, path: str = "/") -> str:
    response = requests.get(server.url + path, timeout=DEADLINE_S)
    assert response.status_code == 200
    return response.text


def test_prometheus_in_several_processes(serve: Serve, tmp_path: Path) -> None:
    """The application writes its figures to files; the master serves them, and cleans up."""
    port = Server(cwd=tmp_path).port
    write(
        tmp_path,
        shop="""
        import os
        from prometheus_client import Counter, Gauge

        requests = Counter("shop_requests", "Requests")
        busy = Gauge("shop_busy", "Busy workers", multiprocess_mode="livesum")

        def app(environ, start_response):
            requests.inc()
            busy.set(1)
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]
        """,
        conf=f"""
        import os
        import shutil
        from prometheus_client import CollectorRegistry, multiprocess, start_http_server

        workers = 2

        def on_starting(server):
            shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
            os.mkdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])

        def when_ready(server):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            start_http_server({port}, addr="127.0.0.1", registry=registry)

        def child_exit(server, worker):
            multiprocess.mark_process_dead(worker.pid)
        """,
    )
    figures = tmp_path / "figures"
    figures.mkdir()
    env = {"PROMETHEUS_MULTIPROC_DIR": str(figures)}
    server = serve("shop:app", ready=2, env=env)
    get(server)
    live = next(figures.glob("gauge_livesum_*.db"))
    shown = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S).text
    assert "shop_requests_total 1.0" in shown
    assert "shop_busy 1.0" in shown
    os.kill(int(live.stem.rpartition("_")[2]), signal.SIGKILL)
    wait_for(lambda: not live.exists(), "the file of the dead worker to be removed")
    assert list(figures.glob("counter_*.db"))


def test_an_agent_that_is_started_in_each_worker(serve: Serve, tmp_path: Path) -> None:
    """As with New Relic and Datadog: started after the fork, then wrapped around the app."""
    write(
        tmp_path,
        newrelic__agent="""
        import os

        def initialize(path):
            print("agent", os.getpid(), path, flush=True)

        def register_application(timeout):
            print("registered", timeout, flush=True)

        class WSGIApplicationWrapper:
            def __init__(self, app):
                self.app = app

            def __call__(self, environ, start_response):
                print("traced", environ["PATH_INFO"], flush=True)
                return self.app(environ, start_response)
        """,
        conf="""
        workers = 2
        import newrelic.agent

        def post_fork(server, worker):
            server.log.info("Worker spawned (pid: %s)", worker.pid)
            newrelic.agent.initialize("newrelic.ini")
            newrelic.agent.register_application(timeout=10.0)
            worker.app.callable = newrelic.agent.WSGIApplicationWrapper(worker.app.wsgi())
        """,
    )
    server = serve("shop:app", ready=2)
    get(server, "/checkout")
    for pid in server.ready_pids():
        server.wait_log(f"^agent {pid} newrelic.ini$")
        server.wait_log(rf"Worker spawned \(pid: {pid}\)")
    server.wait_log("^traced /checkout$")
    assert f"agent {server.pid} " not in server.log()


def test_times_of_requests(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    files = {"shop": ASGI} if worker_class == "async" else {}
    write(
        tmp_path,
        **files,
        conf="""
        import time

        def pre_request(worker, req):
            req.started = time.time()
            worker.nr_seen = getattr(worker, "nr_seen", 0) + 1
            worker.log.debug("%s %s", req.method, req.path)

        def post_request(worker, req, environ, resp):
            took = time.time() - req.started
            length = dict((n.lower(), v) for n, v in resp.headers).get("content-length", resp.sent)
            agent = dict(req.headers).get("USER-AGENT")
            worker.log.info(
                "%s %s?%s by %s from %s: %s %s, %s bytes in %.3f s; request %s of %s",
                req.method, req.path, req.query, agent, req.remote_addr, resp.status,
                resp.status_code, length, took, worker.nr_seen, worker.pid,
            )
            if took > worker.cfg.timeout / 2:
                worker.log.warning("slow: %s", req.uri)
        """,
    )
    server = serve("shop:app", "-k", worker_class, "--log-level", "debug")
    request = raw.request("/cart?a=1", "User-Agent: curl")
    assert raw.status(raw.talk(server, request)) == 200
    (pid,) = server.ready_pids()
    server.wait_log(
        rf"GET /cart\?a=1 by curl from .*127\.0\.0\.1.*: 200 OK 200, \d+ bytes in 0\.\d+ s; "
        rf"request 1 of {pid}$"
    )
    server.wait_log(r"\[DEBUG\] GET /cart$")


def test_pools_of_database_connections(serve: Serve, tmp_path: Path) -> None:
    """The app is preloaded; each worker drops the connections that it has inherited."""
    write(
        tmp_path,
        shop="""
        import os

        class Engine:
            def __init__(self):
                self.pool = [os.getpid()]

            def dispose(self, close=True):
                print("dispose", os.getpid(), self.pool, close, flush=True)
                self.pool = []

            def connect(self):
                self.pool = self.pool or [os.getpid()]
                return self.pool[0]

        engine = Engine()

        def app(environ, start_response):
            body = f"{os.getpid()} {engine.connect()}".encode()
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        """,
        conf="""
        preload_app = True
        workers = 2

        def post_fork(server, worker):
            from shop import engine
            engine.dispose(close=False)

        def worker_exit(server, worker):
            from shop import engine
            engine.dispose()
        """,
    )
    server = serve("shop:app", ready=2)
    pid, connection = get(server).split()
    assert pid == connection
    pids = server.ready_pids()
    assert int(pid) in pids
    assert server.stop() == 0
    requested = int(pid)
    for each in pids:
        server.wait_log(rf"^dispose {each} \[\d+\] False$")
        left = each if each == requested else ""
        server.wait_log(rf"^dispose {each} \[{left}\] True$")


def test_a_worker_class_of_uvicorn_with_options(serve: Serve, tmp_path: Path) -> None:
    write(
        tmp_path,
        shop=ASGI,
        uvicorn__workers="""
        class UvicornWorker:
            CONFIG_KWARGS = {"loop": "auto", "http": "auto"}
        """,
        shop_worker="""
        from uvicorn.workers import UvicornWorker

        class ShopWorker(UvicornWorker):
            CONFIG_KWARGS = {"loop": "asyncio", "http": "h11", "lifespan": "off"}
        """,
        conf="""
        import multiprocessing
        worker_class = "shop_worker.ShopWorker"
        workers = min(2, multiprocessing.cpu_count())
        keepalive = 120
        graceful_timeout = 120
        timeout = 120
        """,
    )
    (tmp_path / "uvicorn" / "__init__.py").touch()
    server = serve("shop:app")
    assert get(server) == "asgi"
    server.wait_log(r"set its CONFIG_KWARGS \(http, lifespan, loop\) as settings")


def test_access_logs_in_json(serve: Serve, tmp_path: Path) -> None:
    """By a formatter that reads the atoms, and by a format that looks like JSON."""
    write(
        tmp_path,
        shop_log="""
        import json, logging

        class Access(logging.Formatter):
            def format(self, record):
                a = record.args
                return json.dumps({
                    "level": record.levelname, "remote_ip": a["h"], "method": a["m"],
                    "path": a["U"], "query": a["q"], "status": a["s"], "size": a["b"],
                    "seconds": float(a["L"]), "agent": a["a"], "id": a["{x-request-id}i"],
                    "process": a["p"],
                })
        """,
        conf="""
        accesslog = "-"
        logconfig_dict = {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"access": {"()": "shop_log.Access"}},
            "handlers": {
                "access": {
                    "class": "logging.StreamHandler",
                    "formatter": "access",
                    "stream": "ext://sys.stdout",
                }
            },
            "loggers": {
                "gunicorn.access": {"level": "INFO", "handlers": ["access"], "propagate": False}
            },
        }
        """,
        other="""
        import json
        accesslog = "-"
        access_log_format = json.dumps({
            "remote_ip": "%(h)s", "request_id": "%({X-Request-Id}i)s", "response_code": "%(s)s",
            "request_method": "%(m)s", "request_path": "%(U)s", "response_time": "%(D)s",
        })
        """,
    )
    request = raw.request("/cart?a=1", "X-Request-Id: abc", "User-Agent: curl")
    server = serve("shop:app")
    raw.talk(server, request)
    line = json.loads(server.wait_log(r"^\{.*\}$")[0])
    assert line.pop("seconds") >= 0
    assert line.pop("process").startswith("<")
    assert int(line.pop("size")) > 0
    assert line == {
        "level": "INFO",
        "remote_ip": "127.0.0.1",
        "method": "GET",
        "path": "/cart",
        "query": "a=1",
        "status": "200",
        "agent": "curl",
        "id": "abc",
    }
    server = serve("-c", "other.py", "shop:app")
    raw.talk(server, request)
    line = json.loads(server.wait_log(r"^\{.*\}$")[0])
    assert int(line.pop("response_time")) >= 0
    assert line == {
        "remote_ip": "127.0.0.1",
        "request_id": "abc",
        "response_code": "200",
        "request_method": "GET",
        "request_path": "/cart",
    }


def test_numbers_from_the_machine_and_the_environment(serve: Serve, tmp_path: Path) -> None:
    write(
        tmp_path,
        conf="""
        import json
        import multiprocessing
        import os

        workers_per_core = float(os.getenv("WORKERS_PER_CORE", "1"))
        cores = multiprocessing.cpu_count()
        max_workers = int(os.getenv("MAX_WORKERS", "0"))
        web_concurrency = max(int(workers_per_core * cores), 2)
        if max_workers:
            web_concurrency = min(web_concurrency, max_workers)
        use_loglevel = os.getenv("LOG_LEVEL", "info")

        loglevel = use_loglevel
        workers = web_concurrency
        bind = os.getenv("BIND") or f"{os.getenv('HOST', '0.0.0.0')}:{os.getenv('HTTP_PORT', '80')}"
        errorlog = os.getenv("ERROR_LOG", "-") or None
        worker_tmp_dir = "/dev/shm"
        graceful_timeout = int(os.getenv("GRACEFUL_TIMEOUT", "120"))
        timeout = int(os.getenv("TIMEOUT", "120"))
        keepalive = int(os.getenv("KEEP_ALIVE", "5"))

        for name, value in os.environ.items():
            if name.startswith("GUNICORN_"):
                locals()[name.split("_", 1)[1].lower()] = value

        log_data = {"loglevel": loglevel, "workers": workers, "bind": bind}
        print(json.dumps(log_data))
        """,
    )
    port = Server(cwd=tmp_path).port
    env = {
        "MAX_WORKERS": "2",
        "LOG_LEVEL": "debug",
        "HOST": "127.0.0.1",
        "HTTP_PORT": str(port),
        "GUNICORN_MAX_REQUESTS": "1000",
        "GUNICORN_THREADS": "3",
    }
    server = serve("shop:app", ready=2, bind=False, env=env)
    server.port = port
    get(server)
    assert len(server.ready_pids()) == 2
    assert f'{{"loglevel": "debug", "workers": 2, "bind": "127.0.0.1:{port}"}}' in server.log()
    assert "is not a setting" not in server.log()


def test_figures_for_statsd(serve: Serve, tmp_path: Path) -> None:
    """The server's own figures with tags, and the configuration's, sent from a hook."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(DEADLINE_S)
        write(
            tmp_path,
            conf=f"""
            import socket
            import time

            address = ("127.0.0.1", {statsd.getsockname()[1]})
            statsd_host = "%s:%d" % address
            statsd_prefix = "shop"
            dogstatsd_tags = "env:test,team:web"

            def post_fork(server, worker):
                worker.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

            def pre_request(worker, req):
                req.t0 = time.monotonic()

            def post_request(worker, req, environ, resp):
                ms = (time.monotonic() - req.t0) * 1000
                text = "web.%s.%s:%d|ms" % (req.method.lower(), resp.status_code, ms)
                worker.udp.sendto(text.encode(), address)

            def nworkers_changed(server, new_value, old_value):
                server.log.info("workers: %s, before: %s", new_value, old_value)
            """,
        )
        server = serve("shop:app")
        get(server)
        received = b""

        def has_all() -> bool:
            nonlocal received
            received += statsd.recv(1 << 16) + b"\n"
            return b"web.get.200:" in received and b"shop.gunicorn.requests" in received

        wait_for(has_all, "both kinds of figures")
        assert b"#env:test,team:web" in received
        server.wait_log("workers: 1, before: None")


def test_migrations_at_the_start(serve: Serve, tmp_path: Path) -> None:
    write(
        tmp_path,
        manage="""
        import os, sys
        with open("migrated", "a") as file:
            print(*sys.argv[1:], file=file)
        sys.exit(int(os.environ.get("MIGRATIONS_FAIL", "0")))
        """,
        conf="""
        import subprocess
        import sys

        workers = 2

        def on_starting(server):
            server.log.info("Running migrations")
            subprocess.run([sys.executable, "manage.py", "migrate", "--noinput"], check=True)

        def on_reload(server):
            server.log.info("reloaded %d workers", len(server.WORKERS))
        """,
    )
    server = serve("shop:app", ready=2)
    assert (tmp_path / "migrated").read_text() == "migrate --noinput\n"
    before = server.ready_pids()
    server.signal(signal.SIGHUP)
    server.wait_replaced(before)
    server.wait_log("reloaded 2 workers")
    assert (tmp_path / "migrated").read_text() == "migrate --noinput\n"
    failed = serve("shop:app", ready=0, env={"MIGRATIONS_FAIL": "3"})
    assert failed.wait_exit() == 1
    assert "the on_starting hook failed: Command " in failed.log()


def test_a_certificate_that_is_renewed(serve: Serve, tmp_path: Path, authority: Authority) -> None:
    """A thread of the configuration watches the file, and tells the server to reload."""
    old, new = authority.issue("old"), authority.issue("new")
    (tmp_path / "cert.pem").write_bytes(old.cert.read_bytes())
    (tmp_path / "key.pem").write_bytes(old.key.read_bytes())
    write(
        tmp_path,
        conf="""
        import os
        import signal
        import ssl
        import threading
        import time

        certfile = "cert.pem"
        keyfile = "key.pem"
        certfile_watch = 0

        def ssl_context(conf, default_ssl_context_factory):
            context = default_ssl_context_factory()
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            return context

        def when_ready(server):
            def watch(before):
                while True:
                    time.sleep(0.05)
                    now = os.stat(server.cfg.certfile).st_mtime_ns
                    if now != before:
                        before = now
                        server.log.info("The certificate has changed")
                        os.kill(server.pid, signal.SIGHUP)

            before = os.stat(server.cfg.certfile).st_mtime_ns
            threading.Thread(target=watch, args=(before,), daemon=True).start()
        """,
    )
    server = serve("shop:app")
    client = ssl.create_default_context(cafile=str(authority.path))

    def serial() -> str:
        plain = raw.connect(server)
        with client.wrap_socket(plain, server_hostname="localhost") as connection:
            assert connection.version() == "TLSv1.3"
            certificate = connection.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    first = serial()
    (tmp_path / "new.pem").write_bytes(new.cert.read_bytes())
    (tmp_path / "key.pem").write_bytes(new.key.read_bytes())
    (tmp_path / "new.pem").rename(tmp_path / "cert.pem")
    wait_for(lambda: serial() != first, "the new certificate")
    server.wait_log("The certificate has changed")
