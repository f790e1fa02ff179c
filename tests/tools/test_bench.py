"""The benchmark's arithmetic: ratios by rounds, aims, regressions, and what a table says."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCH = Path(__file__).parents[2] / "bench"
# Beside each other, as `python bench/run.py` finds them.
MODULES = (
    "against",
    "check",
    "client",
    "environment",
    "goals",
    "load",
    "measure",
    "nginx",
    "process",
    "report",
    "run",
    "servers",
    "tls_client",
    "workloads",
)
# What those import, too.
OWN = {path.stem for path in BENCH.glob("*.py")}


@pytest.fixture(scope="module")
def bench():
    """The modules of bench/, and nothing of them left behind."""
    known = set(sys.modules)
    sys.path.insert(0, str(BENCH))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(BENCH))
        for name in set(sys.modules) - known:
            if name in OWN:
                del sys.modules[name]


def samples(*cpu_us):
    rest = {"rps": 1000.0, "p50_ms": 1.0, "p99_ms": 2.0, "p999_ms": 3.0, "pss_mb": 30.0}
    return [{"cpu_us": each, **rest} for each in cpu_us]


MACHINE = {
    "date": "2026-01-01 00:00 UTC",
    "python": "CPython 3.11",
    "cpu": "a CPU",
    "kernel": "6",
    "load_average": 0.1,
    "versions": {"uvicorn": "1"},
}
RESULTS = {
    "hello": {"servo-async": samples(10.0, 20.0, 30.0), "uvicorn": samples(20.0, 20.0, 100.0)}
}
PAIR = ("hello", "servo-async", "uvicorn")


def test_a_ratio_is_taken_within_each_round(bench):
    # The medians' ratio would be 20 / 20.
    assert bench.report.ratios(RESULTS) == {PAIR: (0.5, 0.3, 1.0, 1.0)}


def test_a_round_that_failed_for_either_is_left_out(bench):
    ours = [{"error": "fell over"}, *samples(20.0)]
    results = {"hello": {"servo-async": ours, "uvicorn": samples(20.0, 40.0)}}
    assert bench.report.ratios(results) == {PAIR: (0.5, 0.5, 0.5, 0.5)}


def test_servers_of_different_interfaces_are_not_compared(bench):
    results = {"hello": {"servo-sync": samples(10.0), "uvicorn": samples(20.0)}}
    assert bench.report.ratios(results) == {}


def test_every_aim_names_what_there_is(bench):
    goals = bench.goals.goals()
    for workload, servo, peer in goals:
        for name in (servo, peer):
            assert bench.servers.SERVERS[name].kind in bench.workloads.WORKLOADS[workload].kinds
    # No aim replaces another one for the same pair.
    assert len(goals) == sum(len(names) for row in bench.goals.GOALS for names in row[2])
    for own in bench.goals.OWN:
        for workload, figure in filter(None, (own.figure, own.over)):
            how = bench.workloads.WORKLOADS[workload].how
            assert figure in {column for column, _, _ in bench.report.COLUMNS[how]}


def test_an_aim_without_a_peer_is_a_figure_or_a_ratio_within_each_round(bench):
    results = {
        "workers-1": {"servo-async": samples(10.0, 20.0, 10.0), "uvicorn": samples(1.0, 1.0, 1.0)},
        "workers-4": {"servo-async": [*samples(11.0, 30.0), {"error": "fell over"}]},
        "start": {"servo-sync": [{"start_ms": 149.0}, {"start_ms": 150.0}]},
    }
    ratio, start = bench.report.own_rows(bench.report.own_aims(results))[2:]
    assert ratio.split(" | ")[1:] == [
        "servo-async",
        "1.1",
        "1.30",
        "1.10\N{EN DASH}1.50",
        "**not met** |",
    ]
    assert start.split(" | ")[1:4] == ["servo-sync", "150", "149.50"]
    assert start.endswith("| met |")


@pytest.mark.parametrize(("cpu_us", "verdict"), [(12.0, "met"), (12.1, "**not met**")])
def test_an_aim_is_met_up_to_its_ratio(bench, cpu_us, verdict):
    results = {"hello": {"servo-async": samples(cpu_us), "uvicorn": samples(20.0)}}
    (row,) = bench.report.goal_rows(bench.report.ratios(results))[2:]
    assert row.endswith(f"| {verdict} |")


@pytest.mark.parametrize(
    ("most", "verdict"), [(0.84, "met"), (0.86, "only the median meets it"), (1.2, "**not met**")]
)
def test_an_aim_is_met_by_the_upper_quartile(bench, most, verdict):
    """Five rounds; the second greatest is the upper quartile."""
    ratios = [0.5, 0.6, most if most > 1 else 0.7, most, 2.0]
    found = {("varied", "servo-sync", "granian-wsgi"): bench.report.spread(ratios)}
    (row,) = bench.report.goal_rows(found)[2:]
    assert row.endswith(f"| {verdict} |")


def test_without_a_quartile_an_aim_is_met_by_the_greatest(bench):
    found = {("varied", "servo-sync", "granian-wsgi"): (0.5, 0.4, 0.86)}
    (row,) = bench.report.goal_rows(found)[2:]
    assert row.endswith("| only the median meets it |")


def test_a_report_keeps_a_server_that_failed(bench):
    failed = {"hypercorn": [{"error": "has no way"}]}
    results = {"hello": {"servo-async": samples(10.0), "uvicorn": samples(20.0), **failed}}
    record = bench.report.record("http", MACHINE, results, 1, 1.0)
    text = bench.report.markdown(json.loads(bench.report.as_json(record)))
    assert "| uvicorn | 20.0 | 20.0\N{EN DASH}20.0 | 0.50 (" in text
    assert "| hypercorn | has no way |" in text


def test_a_report_says_that_some_rounds_failed(bench):
    theirs = [*samples(20.0), {"error": "fell over"}]
    results = {"hello": {"servo-async": samples(10.0, 10.0), "uvicorn": theirs}}
    text = bench.report.markdown(bench.report.record("http", MACHINE, results, 2, 1.0))
    assert "uvicorn failed in 1 of 2 rounds: fell over." in text


@pytest.mark.parametrize(("cpu_us", "found"), [(12.4, False), (12.6, True)])
def test_worse_is_beyond_the_spread_and_five_percent(bench, cpu_us, found):
    before = {PAIR: (0.5, 0.45, 0.55)}
    # 0.5 * 1.05 + 0.1
    now = {"hello": {"servo-async": samples(cpu_us), "uvicorn": samples(20.0)}}
    lines = bench.check.regressions(before, now)
    assert bool(lines) is found
    assert all("servo-async / uvicorn" in line for line in lines)


def test_what_servo_can_no_longer_do_is_worse(bench):
    now = {"hello": {"servo-async": [{"error": "fell over"}], "uvicorn": samples(20.0)}}
    before = {PAIR: (0.5, 0.5, 0.5)}
    assert bench.check.regressions(before, now) == ["hello: servo-async failed: fell over"]


def test_a_record_of_another_format_is_not_compared_with(bench, tmp_path):
    path = tmp_path / "http.json"
    path.write_text(json.dumps({"results": {}}))
    assert bench.check.recorded(path) is None
    path.write_text(json.dumps(bench.report.record("http", MACHINE, RESULTS, 3, 1.0)))
    assert bench.check.recorded(path) == {PAIR: (0.5, 0.3, 1.0, 1.0)}


def test_a_record_may_name_what_is_no_more(bench):
    record = bench.report.record("http", MACHINE, RESULTS, 3, 1.0)
    record["ratios"].append(["gone", "servo-old", "peer", 1.0, 1.0, 1.0])
    assert "servo-async / uvicorn" in bench.report.all_goals([record])
    before = bench.report.recorded_ratios(record)
    assert bench.check.regressions(before, RESULTS) == []


def test_groups_are_recorded_apart_and_parts_together(bench):
    runs = bench.run.runs
    assert list(runs(["http", "tls"], None, whole=True)) == ["http", "tls"]
    assert list(runs(["http", "tls"], None, whole=False)) == ["latest"]
    trial = runs(["hello", "http"], "trial", whole=True)
    assert [w.name for w in trial["trial"]].count("hello") == 1


def test_a_server_says_what_it_cannot_do(bench):
    waitress = bench.servers.SERVERS["waitress"]
    for setup in ({"tls": True}, {"workers": 2}, {"access_log": True}):
        with pytest.raises(bench.servers.UnableError):
            waitress.command(bench.servers.Setup(**setup))


def test_a_name_is_a_group_or_a_workload(bench):
    assert not set(bench.workloads.GROUPS) & set(bench.workloads.WORKLOADS)


def test_every_workload_has_a_method_and_columns(bench):
    for workload in bench.workloads.WORKLOADS.values():
        assert workload.how in bench.measure.METHODS
        assert workload.how in bench.report.COLUMNS


ANSWERS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "empty": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_client_sees_an_answer_end_wherever_it_is_split(bench, answer):
    for split in range(1, len(answer)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection = bench.client.Connection(0)
            connection.socket = ours
            connection.ask(b"GET", due=0.0, slow=False)
            theirs.sendall(answer[:split])
            assert not connection.answered()
            theirs.sendall(answer[split:])
            assert connection.answered()


def test_the_client_takes_no_error_for_an_answer(bench):
    connection = bench.client.Connection(0)
    with pytest.raises(ConnectionError, match="503"):
        connection.read_head(b"http/1.1 503 busy")


def test_a_change_is_judged_by_ratios_within_pairs(bench):
    pairs = [(10.0, 11.0), (20.0, 20.0), (40.0, 36.0), (10.0, 12.0)]
    row = bench.against.table({("servo-sync", "varied"): pairs}, "v1").splitlines()[-1]
    assert row == "| servo-sync | varied | 10.00 | 11.00 | 1.100 | 1.050 | 1.000-1.100 |"


def test_requests_that_differ_need_wrk(bench, monkeypatch):
    monkeypatch.setattr(bench.load.shutil, "which", lambda name: None)
    with pytest.raises(bench.load.FailedError, match="wrk"):
        bench.load.closed(bench.workloads.WORKLOADS["proxied"], 1.0)


REQUIREMENTS = """# The peers.
granian==2.8.7
Gunicorn_H1C==0.6.10
bengal-pounce==0.9.2; python_version >= "3.14"
uvloop==0.23.0
"""


def test_a_package_that_is_missing_has_a_reason(bench):
    assert bench.environment.reasons_missing(
        {"granian": "2.8.7"}, REQUIREMENTS, {"Gunicorn_H1C==0.6.10": "ERROR: no compiler"}
    ) == {
        "gunicorn-h1c": "ERROR: no compiler",
        "bengal-pounce": 'needs python_version >= "3.14"',
        "uvloop": "pip did not install it",
    }


def test_a_peer_that_is_missing_is_named_in_the_record(bench, tmp_path):
    (tmp_path / "missing.json").write_text(json.dumps({"bengal-pounce": "needs a newer Python"}))
    workload = bench.workloads.WORKLOADS["hello"]
    pounce = bench.servers.SERVERS["pounce"]
    found = bench.measure.measure(str(tmp_path / "bin" / "python"), pounce, [workload], 1.0, 0.0)
    reason = "bengal-pounce is not installed: needs a newer Python"
    assert found == {"hello": {"error": reason}}
    machine = {**MACHINE, "missing": {"bengal-pounce": "needs a newer Python"}}
    text = bench.report.markdown(bench.report.record("http", machine, RESULTS, 3, 1.0))
    assert "Not installed: bengal-pounce (needs a newer Python)." in text


def test_a_peer_needs_packages_of_the_requirements(bench):
    wanted = bench.environment.REQUIREMENTS.read_text()
    # Nothing is installed, so each requirement is missing.
    known = bench.environment.reasons_missing({}, wanted, {})
    for server in bench.servers.SERVERS.values():
        assert set(server.packages) <= set(known)
        assert server.is_servo or server.packages or server.kind == bench.servers.FLOOR


def test_an_interpreter_names_the_records(bench, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert bench.run.arguments().suffix == ""
    monkeypatch.setattr(sys, "argv", ["run.py", "--python", sys.executable])
    major, minor = sys.version_info[:2]
    suffix = f"-{sys.implementation.name}-{major}.{minor}{sys.abiflags}"
    assert bench.run.arguments().suffix == suffix


def test_interpreters_are_columns_of_a_page(bench):
    newer = {**MACHINE, "group": "http", "python": "CPython 3.14.1 (/usr/bin/python3.14)"}
    results = {"hello": {"servo-async": samples(8.0), "pounce": samples(70.0)}}
    records = [
        bench.report.record("http", MACHINE, RESULTS, 3, 1.0),
        bench.report.record("http-cpython-3.14", newer, results, 1, 1.0),
    ]
    lines = bench.report.by_interpreter(records).splitlines()
    assert "| [CPython 3.11](http.md) | [CPython 3.14.1](http-cpython-3.14.md) |" in lines[10]
    assert "| hello, CPU µs/request | servo-async | 20.0 | 8.0 |" in lines
    assert "| hello, CPU µs/request | pounce | — | 70.0 |" in lines
    assert bench.report.by_interpreter(records[:1]) == ""


def test_a_server_without_python_is_a_peer_of_every_kind(bench):
    results = {
        "tls-fresh": {
            "servo-sync": samples(400.0),
            "servo-async": samples(500.0),
            "uvicorn": samples(500.0),
            "nginx": samples(250.0),
        }
    }
    found = bench.report.ratios(results)
    assert {pair[1:]: ratio[0] for pair, ratio in found.items()} == {
        ("servo-sync", "nginx"): 1.6,
        ("servo-async", "nginx"): 2.0,
        ("servo-async", "uvicorn"): 1.0,
    }
    text = bench.report.markdown(bench.report.record("tls", MACHINE, results, 1, 1.0))
    assert text.count("| nginx | 250.0 |") == 2


def test_nginx_in_front_adds_the_fields_of_a_proxy(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.nginx, "WORK", tmp_path)
    monkeypatch.setattr(bench.nginx.shutil, "which", lambda *_, **__: "/usr/sbin/nginx")
    *_, path = bench.nginx.proxy_command()
    text = Path(path).read_text()
    assert f"listen 127.0.0.1:{bench.servers.PROXY_PORT};" in text
    assert f"server 127.0.0.1:{bench.servers.PORT};" in text
    for name in ("X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP"):
        assert f"proxy_set_header {name} " in text
    *_, path = bench.nginx.server_command(bench.servers.Setup(tls=True, workers=4))
    text = Path(path).read_text()
    assert f"listen 127.0.0.1:{bench.servers.PORT} ssl;" in text
    assert "worker_processes 4;" in text
    # No certificate is made for workloads without TLS.
    *_, path = bench.nginx.server_command(bench.servers.Setup())
    assert "ssl_certificate" not in Path(path).read_text()


def test_nginx_may_be_missing(bench, monkeypatch):
    monkeypatch.setattr(bench.nginx.shutil, "which", lambda *_, **__: None)
    fresh, nginx = bench.workloads.WORKLOADS["fresh"], bench.servers.SERVERS["nginx"]
    found = bench.measure.measure(sys.executable, nginx, [fresh], 1.0, 0.0)
    assert found == {"fresh": {"error": "nginx is not here (Debian: apt-get install nginx)"}}


def test_the_static_files_are_as_long_as_their_requests_expect(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.environment, "STATIC_FILES", tmp_path / "static")
    bench.environment.make_static_files()
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "static").iterdir()}
    assert sizes == bench.workloads.STATIC
    # The check of a load's bytes compares their mean with the answer that is probed.
    assert bench.workloads.FILE.answer <= sum(sizes.values()) / len(sizes)


@pytest.fixture(scope="module")
def arena():
    """The application of HttpArena's requests, with the standard library's JSON."""
    compact = {"separators": (",", ":")}
    orjson = SimpleNamespace(dumps=lambda value: json.dumps(value, **compact).encode())
    spec = importlib.util.spec_from_file_location("bench_arena", BENCH / "apps" / "arena.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "orjson", orjson)
        spec.loader.exec_module(module)
    return module


def test_the_application_gives_the_answers_that_are_expected(bench, arena):
    requests = [each.request for each in bench.workloads.GROUPS["arena"]]
    for request in (each for each in requests if each.varies != "static"):
        path, _, query = request.path.partition("?")
        environ = {"PATH_INFO": path, "QUERY_STRING": query}
        environ["wsgi.input"] = io.BytesIO(request.body)
        environ["CONTENT_LENGTH"] = str(len(request.body)) if request.body else ""
        answer = b"".join(arena.wsgi(environ, lambda *_: None))
        assert request.answer in (answer, len(answer))


@pytest.fixture
def css(arena, tmp_path, monkeypatch):
    """A file that the application serves."""
    path = tmp_path / "a.css"
    path.write_bytes(b"x" * 70_000)
    monkeypatch.setattr(arena, "FILES", {"a.css": (str(path), "text/css", 70_000)})
    return path


@pytest.mark.parametrize("extensions", [{}, {"http.response.pathsend": {}}], ids=["read", "sent"])
def test_the_application_sends_a_file_by_the_means_of_the_server(arena, css, extensions):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/static/a.css", "query_string": b"", "extensions": extensions}
    asyncio.run(arena.asgi(scope, None, send))
    assert (b"content-length", b"70000") in sent[0]["headers"]
    if extensions:
        assert sent[1:] == [{"type": "http.response.pathsend", "path": str(css)}]
    else:
        assert b"".join(message["body"] for message in sent[1:]) == css.read_bytes()
        assert not sent[-1].get("more_body")


@pytest.mark.parametrize("wraps", [False, True])
def test_the_application_wraps_a_file_if_the_server_can(arena, css, wraps):
    wrapped = []

    def wrapper(file, size):
        wrapped.append(size)
        with file:
            yield file.read()

    environ = {"PATH_INFO": "/static/a.css", "QUERY_STRING": ""}
    if wraps:
        environ["wsgi.file_wrapper"] = wrapper
    assert b"".join(arena.wsgi(environ, lambda *_: None)) == css.read_bytes()
    assert wrapped == [65_536] * wraps


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """The load generator, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    target = tmp_path_factory.mktemp("bench") / "generator"
    command = [compiler, "-O1", "-Wall", "-Werror", "-o", str(target), str(BENCH / "generator.c")]
    subprocess.run(command, check=True)
    return target


class Answering:
    """A server on loopback that answers each request with the same bytes.

    piece   bytes to send at a time; 0: all of them
    closes  close a connection after the first answer
    stall_s how long to wait before the first answer
    handle  serves a connection instead
    """

    def __init__(self, answer, piece=0, closes=False, stall_s=0.0, handle=None):
        self.answer, self.piece, self.closes, self.stall_s = answer, piece, closes, stall_s
        self.handle = handle or self.serve
        self.per_connection, self.most_together = [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.handlers = []
        self.thread = threading.Thread(target=self.accept)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        for handler in self.handlers:
            handler.join()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.handlers.append(threading.Thread(target=self.handle, args=(connection,)))
            self.handlers[-1].start()

    def serve(self, connection):
        seen = 0
        with connection, contextlib.suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(65536):
                if self.stall_s and not seen:
                    threading.Event().wait(self.stall_s)
                together = data.count(b"\r\n\r\n")
                seen += together
                self.most_together = max(self.most_together, together)
                answers = self.answer * together
                piece = self.piece or len(answers)
                for at in range(0, len(answers), piece):
                    connection.sendall(answers[at : at + piece])
                if self.closes:
                    break
        self.per_connection.append(seen)


@pytest.fixture
def generate(generator, bench, tmp_path):
    """Run the load generator against a server; return its result."""

    def run(server, per_connection=0, pipelined=1, rate=0, connections=2, seconds=0.1):
        path = tmp_path / "request"
        path.write_bytes(bench.load.request_bytes(bench.workloads.Request("/"), server.port))
        command = [generator, server.port, seconds, connections, path]
        command += [per_connection, pipelined, rate]
        return json.loads(subprocess.check_output([str(part) for part in command], text=True))

    return run


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("piece", [0, 1], ids=["whole", "byte-by-byte"])
def test_the_generator_sees_an_answer_end_wherever_it_is_split(generate, answer, piece):
    with Answering(answer, piece) as server:
        found = generate(server, rate=200)
    assert (found["requests"], found["errors"], found["connections"]) == (20, 0, 2)
    assert sum(server.per_connection) == 20


def test_the_generator_closes_after_its_number_of_requests(generate):
    with Answering(ANSWERS["length"]) as server:
        found = generate(server, per_connection=3, rate=200)
    assert (found["requests"], found["errors"]) == (20, 0)
    assert sorted(server.per_connection) in ([2, 3, 3, 3, 3, 3, 3], [1, 1, 3, 3, 3, 3, 3, 3])


def test_the_generator_sends_requests_together(generate):
    with Answering(ANSWERS["length"]) as server:
        found = generate(server, pipelined=16)
    assert found["errors"] == 0
    assert server.most_together == 16


def test_the_generator_connects_again_if_the_server_closes(generate):
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
    with Answering(answer, closes=True) as server:
        found = generate(server, rate=200)
    assert (found["requests"], found["errors"], found["connections"]) == (20, 0, 20)
    assert server.per_connection == [1] * 20


def test_the_generator_takes_no_error_for_an_answer(generate):
    with Answering(b"HTTP/1.1 503 busy\r\nContent-Length: 0\r\n\r\n") as server:
        found = generate(server, rate=200)
    assert (found["requests"], found["errors"]) == (0, 20)


def test_the_generator_sends_the_next_request_when_the_last_one_is_answered(generate):
    with Answering(ANSWERS["length"]) as server:
        found = generate(server)
    assert found["errors"] == 0
    # Each connection may have a request that was not answered in time.
    assert 0 <= sum(server.per_connection) - found["requests"] <= 2


def test_a_stall_makes_all_requests_late_that_were_due_meanwhile(generate):
    """Coordinated omission: if latencies counted from the time of sending, only the first request
    would be late. All are due within the stall, and half of them in its first half."""
    with Answering(ANSWERS["length"], stall_s=0.1) as server:
        found = generate(server, rate=500, connections=1)
    assert (found["requests"], found["errors"]) == (50, 0)
    assert found["p50_ms"] >= 45


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    trustme = pytest.importorskip("trustme")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    issued = trustme.CA().issue_cert("localhost")
    path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    return path


@pytest.mark.parametrize(("tickets", "full"), [(2, False), (0, True)], ids=["tickets", "none"])
def test_the_tls_client_counts_the_handshakes_that_were_not_resumed(
    bench, certificate, tickets, full
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.num_tickets = tickets
    resumed = []

    def answer(connection):
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)
            resumed.append(tls.session_reused)
            tls.sendall(ANSWERS["length"])

    with Answering(b"", handle=answer) as server:
        found = bench.tls_client.main(server.port, 0.1, 1)
    assert found["errors"] == 0
    assert found["requests"] == len(resumed)
    assert resumed.count(True) == (0 if full else len(resumed) - 1)
    expected = 100 * (len(resumed) - 1) / len(resumed) if full else 0
    assert found["full_percent"] == expected


def test_the_page_of_the_aims_can_be_written_from_the_records(bench, tmp_path, monkeypatch):
    for name, group, python in (
        ("http", "http", "CPython 3.11"),
        ("http-cpython-3.14", "http", "CPython 3.14.1"),
        ("trial", "trial", "CPython 3.11"),
    ):
        machine = {**MACHINE, "group": group, "python": python}
        record = bench.report.record(name, machine, RESULTS, 3, 1.0)
        (tmp_path / f"{name}.json").write_text(bench.report.as_json(record))
    monkeypatch.setattr(sys, "argv", ["run.py", "--pages", "--out", str(tmp_path)])
    bench.run.main()
    goals = (tmp_path / "goals.md").read_text()
    assert "Measured: http 2026-01-01 00:00 UTC." in goals
    assert goals.count("| servo-async / uvicorn | hello | 0.60 | 0.50 |") == 1
    assert "CPython 3.14.1" in (tmp_path / "interpreters.md").read_text()


def test_a_package_that_takes_too_long_to_build_is_given_up(bench, monkeypatch):
    monkeypatch.setattr(bench.environment, "BUILD_S", 0.05)
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    # The grandchild reads a pipe that nobody closes, as a compiler that doesn't end.
    ours, theirs = os.pipe()
    with open(ours) as stdin, open(theirs, "w"):
        monkeypatch.setattr(
            bench.environment.subprocess, "Popen", functools.partial(subprocess.Popen, stdin=stdin)
        )
        assert bench.environment.install(sys.executable, "-c", script).startswith("was not built")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("", ""),
        ("import sys; sys.exit('ERROR: no compiler')", "ERROR: no compiler"),
        ("import sys; sys.exit('ERROR: no compiler\\nan error of metadata')", "ERROR: no compiler"),
        ("import sys; sys.exit('error: metadata')", "error: metadata"),
        ("import sys; sys.exit(1)", "pip failed"),
    ],
)
def test_a_package_that_cannot_be_installed_has_pips_error(bench, script, error):
    assert bench.environment.install(sys.executable, "-c", script) == error


def test_both_workloads_of_pipelining_have_the_same_load_generator(bench, monkeypatch, tmp_path):
    """Otherwise their ratio would also compare two load generators."""
    commands = []

    def run(command, seconds):
        commands.append(command)
        return json.dumps({"requests": 1, "errors": 0})

    monkeypatch.setattr(bench.load, "run", run)
    monkeypatch.setattr(bench.load, "WORK", tmp_path)
    for workload in bench.workloads.GROUPS["pipelining"]:
        bench.load.closed(workload, 1.0)
    assert [command[-2] for command in commands] == ["1", "16"]
    assert all(str(bench.servers.GENERATOR) in command for command in commands)
