"""Metrics, probes and statsd of real servers, read by real clients."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from integration.conftest import class_args
from integration.load import Load
from integration.server import APPS, DEADLINE_S, Server, free_port, wait_for
from integration.test_control import ctl

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
WSGI = f"{APPS / 'wsgi_app.py'}:app"


class Metrics:
    """A scraper that notices when a counter goes back."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.last: Samples = {}

    def scrape(self) -> Samples:
        text = requests.get(f"{self.url}/metrics", timeout=DEADLINE_S).text
        found = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        for key, value in self.last.items():
            if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
                assert found[key] >= value, f"{key} went back"
        self.last = found
        return found

    def value(self, name: str, **labels: str) -> float:
        return self.scrape().get((name, frozenset(labels.items())), 0.0)

    def wait_value(self, expected: float, name: str, **labels: str) -> None:
        wait_for(lambda: self.value(name, **labels) == expected, f"{name} {labels} {expected}")

    def ready(self) -> int:
        return requests.get(f"{self.url}/-/ready", timeout=DEADLINE_S).status_code


def serve_with_metrics(serve: Serve, *args: str, **options: object) -> tuple[Server, Metrics]:
    port = free_port()
    server = serve(*args, "--metrics-bind", f"127.0.0.1:{port}", **options)
    return server, Metrics(port)


def metrics_pid(server: Server) -> int:
    """The one child of the arbiter that is no worker."""
    (pid,) = set(server.children()) - set(server.worker_pids())
    return pid


# --- totals -------------------------------------------------------------------------------------


def test_totals_are_what_was_sent_across_reloads_and_kills(serve: Serve, worker_class: str) -> None:
    server, metrics = serve_with_metrics(serve, *class_args(worker_class), "-w", "2", ready=2)
    gets = posted = 0
    for _ in range(5):
        old = server.wait_workers(2)
        with Load(server.port, {"raw-kept": 2, "raw-fresh": 1}) as load:
            load.wait_answers(20)
            server.signal(signal.SIGHUP)
            while set(old) & set(server.worker_pids()):
                metrics.scrape()
            load.wait_answers(10)
        assert load.failures == []
        gets += load.answers
    for _ in range(3):
        for _ in range(10):
            assert requests.post(f"{server.url}/echo", data=b"12345", timeout=30).ok
        posted += 10
        assert requests.get(f"{server.url}/nowhere", timeout=30).status_code == 404
        victim = server.wait_workers(2)[0]
        server.signal_worker(victim, signal.SIGKILL)
        server.wait_replaced([victim], count=2)
    metrics.wait_value(gets, "servo_requests_total", method="GET", status="2xx")
    metrics.wait_value(posted, "servo_requests_total", method="POST", status="2xx")
    metrics.wait_value(3, "servo_requests_total", method="GET", status="4xx")
    found = metrics.scrape()

    def total(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert total("servo_responses_total", code="200") == gets + posted
    assert total("servo_responses_total", code="404") == 3
    assert total("servo_request_duration_seconds_count") == gets + posted + 3
    assert total("servo_request_body_bytes_total") == 5 * posted
    assert total("servo_reloads_total", outcome="finished") == 5
    assert total("servo_worker_exits_total", reason="replaced") == 10
    assert total("servo_worker_exits_total", reason="crashed") == 3
    assert total("servo_worker_spawns_total") == 2 + 10 + 3
    assert total("servo_generation") == 6
    assert total("servo_workers", state="ready") == total("servo_workers_target") == 2
    assert total("servo_workers_min") == total("servo_workers_max") == 2
    assert total("servo_requests_in_flight") == 0
    # Each of the killed is an error in the log, and so is nothing else.
    assert total("servo_log_entries_total", level="error") == 3
    assert total("servo_accept_queue_limit", listener=f"http://127.0.0.1:{server.port}") > 0


def test_what_a_killed_worker_had_finished_is_counted_under_load(serve: Serve) -> None:
    server, metrics = serve_with_metrics(serve, WSGI, "-k", "thread", "-w", "2", ready=2)
    clients = 4
    with Load(server.port, {"raw-kept": clients}) as load:
        for _ in range(3):
            load.wait_answers(100)
            victim = server.wait_workers(2)[0]
            server.signal_worker(victim, signal.SIGKILL)
            server.wait_replaced([victim], count=2)
            metrics.scrape()

    def all_counted() -> bool:
        counted = metrics.value("servo_requests_total", method="GET", status="2xx")
        return load.answers - 3 * clients <= counted <= load.answers + len(load.failures)

    # A request may be answered and not counted, or counted and not answered, at the moment of a
    # kill only: one for each client then. A page of metrics may be a little older than the last
    # answers, so wait for one that has them.
    wait_for(all_counted, "the answers in the metrics")


def test_gauges_show_a_request_in_flight_and_a_full_queue(serve: Serve) -> None:
    server, metrics = serve_with_metrics(
        serve, WSGI, "-k", "sync", "-w", "1", "--backlog", "5", "--graceful-timeout", "1"
    )
    listener = f"http://127.0.0.1:{server.port}"
    with contextlib.ExitStack() as stack:

        def ask() -> None:
            client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            stack.enter_context(client)
            client.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")

        ask()
        metrics.wait_value(1, "servo_requests_in_flight")
        ask()
        ask()
        metrics.wait_value(2, "servo_accept_queue_length", listener=listener)
        assert metrics.value("servo_accept_queue_limit", listener=listener) == 5
        assert metrics.value("servo_worker_requests_in_flight", slot="1") == 1
        wait_for(
            lambda: metrics.value("servo_worker_oldest_request_seconds", slot="1") > 0,
            "the age of the oldest request",
        )


# --- saturation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker_class", "args", "path"),
    [
        ("sync", [], "/slow?s=3600"),
        ("thread", ["--threads", "1"], "/slow?s=3600"),
        ("async", [], "/block"),
        ("async", ["--limit-concurrency", "1"], "/slow?s=3600"),
    ],
    ids=["sync", "thread", "async", "limit"],
)
def test_utilisation(serve: Serve, worker_class: str, args: list[str], path: str) -> None:
    """Of two workers, a request uses all of one."""
    args = [*class_args(worker_class), "-w", "2", "--timeout", "3600", *args]
    server, metrics = serve_with_metrics(serve, *args, ready=2)
    wait_for(lambda: 0 <= metrics.value("servo_utilisation") < 0.2, "an idle server")
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        metrics.wait_value(1, "servo_requests_in_flight")

        def by_worker() -> list[float]:
            found = metrics.scrape()
            return sorted(v for (name, _), v in found.items() if name == "servo_worker_utilisation")

        wait_for(lambda: by_worker()[1] > 0.9 and by_worker()[0] < 0.2, "a worker in full use")
        wait_for(lambda: 0.45 < metrics.value("servo_utilisation") < 0.6, "the server's mean")
        status = requests.get(f"{metrics.url}/status.json", timeout=DEADLINE_S).json()
        assert 0.4 < status["utilisation"] < 0.9
        assert max(worker["utilisation"] for worker in status["workers"]) > 0.9
        # What hangs in an endless loop can't be asked to end.
        server.kill_all()


# An application whose requests wait until there is a file.
HELD = """
import asyncio, pathlib, time

GO = pathlib.Path(__file__).with_name("go")

def wsgi(environ, start_response):
    while not GO.exists():
        time.sleep(0.02)
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    while not GO.exists():
        await asyncio.sleep(0.02)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
"""


@pytest.mark.parametrize(
    ("interface", "args", "threads"),
    [
        ("wsgi", ("-k", "sync"), 1),
        ("wsgi", ("-k", "thread", "--threads", "2"), 2),
        ("wsgi", ("-k", "async", "--threads", "2"), 2),
        ("asgi", ("-k", "async"), 0),
    ],
    ids=["sync", "thread", "wsgi-in-async", "asgi"],
)
def test_threads(
    serve: Serve, tmp_path: Path, interface: str, args: tuple[str, ...], threads: int
) -> None:
    (tmp_path / "held.py").write_text(HELD)
    server, metrics = serve_with_metrics(serve, f"held:{interface}", "-w", "1", *args)
    metrics.wait_value(threads, "servo_threads", state="idle")
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S)
            )
            for _ in range(3)
        ]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        metrics.wait_value(threads, "servo_threads", state="busy")
        if threads == 2:
            metrics.wait_value(1, "servo_requests_waiting_for_thread")
            row = ctl(server, "workers")["workers"][0]
            assert row["threads"] == {"busy": 2, "idle": 0, "waiting": 1}
        (tmp_path / "go").touch()
        for client in clients:
            while client.recv(65536):
                pass
    metrics.wait_value(threads, "servo_threads", state="idle")
    # In a sync worker, further requests wait in the accept queue or in their sockets.
    metrics.wait_value(1 if threads == 2 else 0, "servo_thread_wait_seconds_count")
    status = ctl(server, "status")
    assert (status["thread_wait_p50_s"] is not None) == (threads == 2)
    assert status["accept_queue"]["waiting"] == 0
    assert status["accept_queue"]["limit"] > 0


def test_time_in_queues(serve: Serve, worker_class: str) -> None:
    """The forms of nginx, Heroku and HAProxy."""
    args = (*class_args(worker_class), "-w", "2")
    server, metrics = serve_with_metrics(serve, *args, ready=2)
    with requests.Session() as client:

        def get(name: str, value: str) -> None:
            assert client.get(f"{server.url}/", headers={name: value}, timeout=DEADLINE_S).ok

        start = time.time() - 30
        get("X-Request-Start", f"t={start:.3f}")
        get("X-Request-Start", f"{start * 1e3:.0f}")
        get("X-Request-Start", f"t={start * 1e6:.0f}")
        get("X-Queue-Start", f"t={start:.3f}")
        get("X-Request-Start", f"t={time.time() + 60:.3f}")  # counts as 0
        get("X-Request-Start", "soon")  # these do not count
        get("X-Request-Start", f"t={time.time() - 86400:.3f}")
        assert client.get(f"{server.url}/", timeout=DEADLINE_S).ok
    metrics.wait_value(8, "servo_requests_total", method="GET", status="2xx")
    assert metrics.value("servo_request_queue_seconds_count") == 5
    assert 119 < metrics.value("servo_request_queue_seconds_sum") < 4 * (30 + DEADLINE_S)
    assert ctl(server, "status")["queue_p50_s"] > 17


def test_the_time_in_queues_of_a_client_is_not_believed(serve: Serve, worker_class: str) -> None:
    args = (*class_args(worker_class), "-w", "1", "--forwarded-allow-ips", "10.0.0.0/8")
    server, metrics = serve_with_metrics(serve, *args)
    headers = {"X-Request-Start": f"t={time.time() - 30:.3f}"}
    assert requests.get(f"{server.url}/", headers=headers, timeout=DEADLINE_S).ok
    metrics.wait_value(1, "servo_requests_total", method="GET", status="2xx")
    assert metrics.value("servo_request_queue_seconds_count") == 0
    assert ctl(server, "status")["queue_p50_s"] is None


# --- probes -------------------------------------------------------------------------------------


def test_readiness_fails_before_the_drain_begins(serve: Serve) -> None:
    server, metrics = serve_with_metrics(serve, WSGI, "-w", "1", "--pre-stop-delay", "30")
    assert metrics.ready() == 200
    with Load(server.port, {"raw-fresh": 1, "raw-kept": 1}) as load:
        server.signal(signal.SIGTERM)
        wait_for(lambda: metrics.ready() == 503, "a failing readiness probe")
        load.wait_answers(20)
    assert load.failures == []
    assert requests.get(f"{metrics.url}/-/live", timeout=30).text == "live\n"
    server.signal(signal.SIGTERM)  # the balancer has seen it
    assert server.wait_exit() == 0


def test_the_probe_answers_to_the_end_of_the_drain(serve: Serve) -> None:
    # A busy `sync` worker would close its listener when it is done, and be gone.
    server, metrics = serve_with_metrics(serve, WSGI, "-k", "thread", "-w", "1")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /slow?s=5 HTTP/1.1\r\nHost: x\r\n\r\n")
        metrics.wait_value(1, "servo_requests_in_flight")
        server.signal(signal.SIGTERM)
        wait_for(lambda: metrics.ready() == 503, "a failing readiness probe")
        # The metrics process must not hold the port open for nobody.
        with pytest.raises(ConnectionRefusedError):
            wait_for(
                lambda: socket.create_connection(("127.0.0.1", server.port), timeout=30).close()
            )

        def state() -> tuple[str, bool]:
            status = requests.get(f"{metrics.url}/status.json", timeout=30).json()
            return status["state"], status["ready"]

        # The arbiter publishes its state after it has told the workers and closed the listeners.
        wait_for(lambda: state() == ("stopping", False), "a state that says so")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert server.wait_exit() == 0


def test_readiness_follows_winch_and_hup(serve: Serve) -> None:
    server, metrics = serve_with_metrics(serve, WSGI, "-w", "1")
    server.signal(signal.SIGWINCH)
    wait_for(lambda: metrics.ready() == 503, "a failing readiness probe")
    server.signal(signal.SIGHUP)
    wait_for(lambda: metrics.ready() == 200, "a readiness probe that succeeds again")


# --- the process --------------------------------------------------------------------------------


def test_the_metrics_process_is_replaced_and_keeps_the_totals(serve: Serve) -> None:
    server, metrics = serve_with_metrics(serve, WSGI, "-w", "1")
    for _ in range(5):
        requests.get(server.url, timeout=30)
    metrics.wait_value(5, "servo_requests_total", method="GET", status="2xx")
    first, mark = metrics_pid(server), server.mark()
    os.kill(first, signal.SIGKILL)
    server.wait_log(rf"metrics process \(pid {first}\) ended by SIGKILL; another follows", mark)
    # The listener waits meanwhile: no scraper is refused.
    metrics.wait_value(5, "servo_requests_total", method="GET", status="2xx")
    assert metrics_pid(server) != first


def test_it_survives_what_is_meant_for_the_whole_group(serve: Serve) -> None:
    server, metrics = serve_with_metrics(serve, WSGI, "-w", "1")
    pid = metrics_pid(server)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(pid, signum)
    assert metrics.ready() == 200
    server.signal(signal.SIGHUP)
    metrics.wait_value(1, "servo_reloads_total", outcome="finished")
    assert metrics_pid(server) == pid


def test_it_ends_with_a_killed_arbiter(serve: Serve) -> None:
    server, metrics = serve_with_metrics(serve, WSGI, "-w", "1")
    assert metrics.ready() == 200
    server.signal(signal.SIGKILL)
    assert server.wait_exit() == -signal.SIGKILL
    wait_for(lambda: not server.members(), "the end of the metrics process and the worker")


def test_hostile_scrapers_hold_nobody_up(serve: Serve) -> None:
    server, metrics = serve_with_metrics(serve, WSGI, "-w", "1")
    port = int(metrics.url.rpartition(":")[2])
    clients = []
    for number in range(100):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        clients.append(client)
        client.setblocking(False)
        try:
            client.send((b"", b"GET /me", b"\0" * 70_000, b"GET /metrics HTTP/1.1\r\n")[number % 4])
        except OSError:
            continue  # it was pushed out already
    with Load(server.port, {"raw-kept": 2}) as load:
        for _ in range(10):
            assert metrics.ready() == 200
        load.wait_answers(20)
    assert load.failures == []
    status = Path(f"/proc/{metrics_pid(server)}/status").read_text()
    resident_kib = int(status.partition("VmRSS:")[2].split()[0])
    assert resident_kib < 100_000
    descriptors = len(os.listdir(f"/proc/{metrics_pid(server)}/fd"))
    assert descriptors < 80
    for client in clients:
        client.close()


def test_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    server = serve(WSGI, "-w", "1", "--metrics-bind", f"unix:{path}")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://metrics/-/ready").status_code == 200
        assert "servo_build_info" in client.get("http://metrics/metrics").text
    server.stop()
    assert not path.exists()


def test_off_by_default(serve: Serve) -> None:
    server = serve(WSGI, "-w", "1")
    assert server.children() == server.worker_pids()


def test_without_prometheus_client_it_says_what_to_install(serve: Serve) -> None:
    without = (
        "import sys; sys.modules['prometheus_client'] = None;"
        "from servo.cli.main import main; sys.exit(main())"
    )
    command = (sys.executable, "-c", without)
    server = serve(WSGI, "--metrics-bind", f"127.0.0.1:{free_port()}", command=command, ready=0)
    assert server.wait_exit() == 1
    assert "metrics_bind needs prometheus-client: pip install 'servo-server[standard]'" in (
        server.log()
    )


def test_a_taken_port_ends_the_start(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve(WSGI, "--metrics-bind", f"127.0.0.1:{port}", ready=0)
        assert server.wait_exit() == 1
    assert f"127.0.0.1:{port} is already in use" in server.log()


# --- the app's own ------------------------------------------------------------------------------


def test_an_apps_own_metrics_stand_beside(serve: Serve, tmp_path: Path) -> None:
    directory = tmp_path / "multiproc"
    directory.mkdir()
    server, metrics = serve_with_metrics(
        serve,
        f"{APPS / 'metered_app.py'}:app",
        *("-w", "2"),
        ready=2,
        env={"PROMETHEUS_MULTIPROC_DIR": str(directory)},
    )
    for _ in range(7):
        assert requests.get(server.url, timeout=30).ok
    metrics.wait_value(7, "shop_orders_total")
    metrics.wait_value(7, "servo_requests_total", method="GET", status="2xx")
    assert metrics.value("shop_workers") == 2
    old = server.wait_workers(2)
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    victim = server.wait_workers(2)[0]
    server.signal_worker(victim, signal.SIGKILL)
    server.wait_replaced([victim], count=2)
    # The dead workers' orders stay; they themselves are gone.
    metrics.wait_value(2, "shop_workers")
    assert metrics.value("shop_orders_total") == 7
    alive = {str(pid) for pid in server.worker_pids()}
    live_files = [path.stem for path in directory.iterdir() if "live" in path.name]
    assert {name.rpartition("_")[2] for name in live_files} == alive


# --- statsd -------------------------------------------------------------------------------------


def test_statsd_gets_gunicorns_metrics(serve: Serve) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(DEADLINE_S)
        server = serve(
            WSGI,
            *("-w", "2", "--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}"),
            *("--statsd-prefix", "shop", "--dogstatsd-tags", "env:test"),
            ready=2,
        )
        assert statsd.recv(2000).startswith(b"shop.gunicorn.workers:")
        for _ in range(5):
            requests.get(server.url, timeout=30)
        requests.get(f"{server.url}/nowhere", timeout=30)
        requests.get(f"{server.url}/fail", timeout=30)
        counters: dict[str, float] = {}
        durations = workers = 0.0

        def take() -> None:
            nonlocal durations, workers
            for line in statsd.recv(2000).decode().split("\n"):
                body, _, tags = line.partition("|#")
                assert tags == "env:test"
                name, _, rest = body.removeprefix("shop.").partition(":")
                value, kind, *rate = rest.split("|")
                if kind == "c":
                    counters[name] = counters.get(name, 0) + float(value)
                elif kind == "ms":
                    assert name == "gunicorn.request.duration"
                    assert 0 < float(value) < 60_000
                    durations += 1 / float(rate[0][1:]) if rate else 1
                else:
                    assert (name, kind) == ("gunicorn.workers", "g")
                    workers = float(value)

        while counters.get("gunicorn.requests", 0) < 7:
            take()
        # What is sent at the very end arrives, too.
        requests.get(server.url, timeout=30)
        server.stop()
        statsd.settimeout(1)
        try:
            while True:
                take()
        except TimeoutError:
            assert counters["gunicorn.requests"] == round(durations) == 8
    assert counters["gunicorn.request.status.200"] == 6
    assert counters["gunicorn.request.status.404"] == 1
    assert counters["gunicorn.request.status.500"] == 1
    assert counters["gunicorn.log.exception"] == 1
    assert workers <= 2
