"""The log lines of the server about its requests and itself."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration.conftest import class_args
from integration.load import read_response
from integration.server import APPS, Server, run_servo, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"
COMBINED = re.compile(
    r"^127\.0\.0\.1 - - \[\d+/\w+/\d+:\d+:\d+:\d+ [+-]\d{4}\] "
    r'"GET /\?a=b HTTP/1\.1" 200 2 "-" "agent/1"$',
    re.MULTILINE,
)


def wait_text(path: Path, pattern: str) -> str:
    expression = re.compile(pattern, re.MULTILINE)

    def found() -> bool:
        return path.exists() and expression.search(path.read_text()) is not None

    wait_for(found, f"/{pattern}/ in {path.name}")
    return path.read_text()


def raw(server: Server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(request)
        return read_response(client)[0]


def test_access_log_in_gunicorns_format(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    path = tmp_path / "access.log"
    server = serve(*class_args(worker_class), "--access-logfile", str(path))
    requests.get(f"{server.url}/?a=b", headers={"User-Agent": "agent/1"}, timeout=30)
    wait_text(path, COMBINED.pattern)


def test_access_log_on_standard_output(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "--access-logfile", "-")
    requests.get(f"{server.url}/?a=b", headers={"User-Agent": "agent/1"}, timeout=30)
    server.wait_log(COMBINED.pattern)


def test_access_log_in_json(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    path = tmp_path / "access.log"
    server = serve(
        *class_args(worker_class), "--access-logfile", str(path), "--access-logformat", "json"
    )
    requests.get(f"{server.url}/pid?a=b", timeout=30)
    record = json.loads(wait_text(path, "\n").splitlines()[0])
    assert record["status"] == 200
    assert record["method"] == "GET"


def test_atoms(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    layout = "%(h)s|%(m)s|%(U)s|%(q)s|%(H)s|%(s)s|%(B)s|%({x-up}i)s|%({content-type}o)s|%(p)s"
    server = serve(WSGI, "-w", "1", "--access-logfile", str(path), "--access-logformat", layout)
    (worker,) = server.wait_workers(1)
    requests.get(f"{server.url}/?a=b", headers={"X-Up": "7"}, timeout=30)
    text = wait_text(path, "\n")
    assert text == f"127.0.0.1|GET|/|a=b|HTTP/1.1|200|2|7|text/plain|<{worker}>\n"


def test_client_cannot_forge_a_line(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    path = tmp_path / "access.log"
    server = serve(*class_args(worker_class), "--access-logfile", str(path))
    raw(
        server,
        b"GET /%0a127.0.0.1 HTTP/1.1\r\nHost: a\r\n"
        b'User-Agent: a" 200 1 "b\\\xff\r\nReferer: c\td\r\n\r\n',
    )
    requests.get(f"{server.url}/", timeout=30)
    text = wait_text(path, '"GET / HTTP/1.1" 200')
    forged, _ = text.splitlines()
    assert 'a\\" 200' in forged or "a\\x22 200" in forged
    assert "\t" not in forged


def test_refused_requests_are_in_the_access_log(
    serve: Serve, tmp_path: Path, worker_class: str
) -> None:
    path = tmp_path / "access.log"
    server = serve(*class_args(worker_class), "--access-logfile", str(path))
    raw(server, b"GET /no-host HTTP/1.1\r\n\r\n")
    wait_text(path, '" 400 ')


def test_reopened_logs(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    """As logrotate does it: rename, USR1, and nobody writes into the old file any more."""
    access, error = tmp_path / "access.log", tmp_path / "error.log"
    server = Server(
        *class_args(worker_class),
        *("-w", "2", "--access-logfile", str(access), "--error-logfile", str(error)),
        cwd=tmp_path,
    )
    server.log_path, printed = error, server.log_path
    server.log_path = printed
    server.start()
    try:
        server.log_path = error
        server.wait_ready(2)
        requests.get(f"{server.url}/?before=1", timeout=30)
        wait_text(access, "before=1")
        access.rename(tmp_path / "access.log.1")
        error.rename(tmp_path / "error.log.1")
        server.log_path = tmp_path / "error.log.1"
        server.signal(signal.SIGUSR1)
        wait_for(lambda: access.exists() and error.exists(), "new log files")

        def all_reopened() -> bool:
            """Each of the two workers has answered into the new file."""
            requests.get(f"{server.url}/pid?after=1", timeout=30)
            return access.read_text().count("after=1") > 4

        wait_for(all_reopened, "lines in the new access log")
        server.signal(signal.SIGTTIN)
        wait_text(error, "(?i)worker 3")
    finally:
        server.log_path = printed
        server.stop()


def test_a_mold_reopens_its_logs(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    """The workers that it forks later write to the files that it has open."""
    access = tmp_path / "access.log"
    flags = ("-w", "1", "--preload", "--access-logfile", str(access))
    server = serve(*class_args(worker_class), *flags)
    access.rename(tmp_path / "access.log.1")
    server.signal(signal.SIGUSR1)
    wait_for(access.exists, "the new log file")
    old = server.worker_pids()
    server.signal_worker(old[0], signal.SIGKILL)
    server.wait_replaced(old)
    requests.get(f"{server.url}/?after=1", timeout=30)
    wait_text(access, "after=1")


def test_log_config_file(serve: Serve, tmp_path: Path) -> None:
    target = tmp_path / "custom.log"
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "custom %(name)s %(message)s"}},
        "handlers": {
            "file": {"class": "logging.FileHandler", "formatter": "plain", "filename": str(target)}
        },
        "loggers": {"servo.error": {"level": "INFO", "handlers": ["file"], "propagate": False}},
    }
    path = tmp_path / "logging.json"
    path.write_text(json.dumps(config))
    serve(WSGI, "--log-config-json", str(path), ready=0)
    wait_text(target, "(?i)^custom servo.error .*ready")


def test_log_config_file_with_a_mistake(serve: Serve, tmp_path: Path) -> None:
    """It is found by a check, at the start and at a reload, which leaves the log as it was."""
    good = {"loggers": {"uvicorn.error": {"handlers": ["console"]}}}
    path = tmp_path / "logging.json"
    path.write_text('{\n"loggers": {]\n}')
    arguments = (WSGI, "-w", "1", "--log-config", str(path))
    for more in ("--check-config",), ("--bind", "127.0.0.1:0"):
        done = run_servo(*arguments, *more, cwd=tmp_path)
        assert done.returncode == 1
        assert f"logconfig {path}:2: not valid JSON: " in done.stderr

    path.write_text(json.dumps(good))
    assert "OK" in run_servo(*arguments, "--check-config", cwd=tmp_path).stdout
    server = serve(*arguments)
    path.write_text('{\n"handlers": {"console": {"class": "no.Handler"}},\n"loggers": {}}')
    server.signal(signal.SIGHUP)
    server.wait_log(rf"rolled back: .*logconfig {re.escape(str(path))}:2: Unable to configure hand")
    path.write_text(json.dumps(good))
    server.signal(signal.SIGHUP)
    server.wait_log("reload .*finished")


def test_error_log_in_json(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    serve(WSGI, "--error-logfile", str(path), "--log-format", "json", ready=0)
    text = wait_text(path, "(?i)ready")
    assert all(isinstance(json.loads(line), dict) for line in text.splitlines())


def test_quiet_log_level(serve: Serve) -> None:
    server = serve(WSGI, "--log-level", "error", ready=0)

    def served() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", server.port)) == 0

    wait_for(served, "an open port")
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"
    assert server.log() == ""
