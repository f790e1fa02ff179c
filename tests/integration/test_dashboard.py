"""The dashboard of real servers: who may use it, what it shows, and what it survives."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from authority import Authority, Files

from integration.conftest import Serve
from integration.load import Load
from integration.server import (
    APPS,
    DEADLINE_S,
    Server,
    alive,
    assert_no_noise,
    command_line,
    free_port,
    memory,
    run_servo,
    wait_for,
)
from integration.test_control import servoctl
from integration.test_process import command_for_everybody, needs_root
from servo.dashboard.streams import MOST_STREAMS
from servo.metrics.procfs import proportional_of

pytestmark = pytest.mark.slow

WSGI = f"{APPS / 'wsgi_app.py'}:app"
CONTROL = {"X-Servo-Control": "1"}
Sample = dict[str, Any]


class Dashboard:
    """A client of a server's dashboard, like a browser with a cookie.

    server   the server
    port     the dashboard's port
    """

    def __init__(self, server: Server, port: int, scheme: str = "http", verify: Any = True) -> None:
        self.server = server
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = verify

    @property
    def token(self) -> str:
        return self.server.wait_log(r"The dashboard is at \S+\?token=(\S+)$")[1]

    def sign_in(self) -> Dashboard:
        answer = self.get(f"/?token={self.token}", allow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        return self

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=DEADLINE_S, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.session.post(self.url + path, timeout=DEADLINE_S, **options)

    def command(self, **body: Any) -> requests.Response:
        return self.post("/api/control", json=body, headers=CONTROL)

    def history(self) -> dict[str, Any]:
        answer = self.get("/api/history")
        assert answer.status_code == 200
        return dict(answer.json())

    def last(self) -> Sample:
        samples = self.history()["samples"]
        return dict(samples[-1]) if samples else {}

    def wait(self, condition: Callable[[Sample], object], what: str = "") -> Sample:
        """The first of the latest samples that fulfils a condition."""

        def found() -> Sample | None:
            sample = self.last()
            return sample if sample and condition(sample) else None

        return wait_for(found, what, every_s=0.2)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.history()["events"] if event["name"] == name]

    @contextlib.contextmanager
    def stream(self, **fields: str) -> Iterator[Iterator[tuple[str, dict[str, str]]]]:
        """Follow the stream: yields an iterator over (event, fields)."""
        options = {"stream": True, "headers": fields, "timeout": DEADLINE_S}
        with self.session.get(f"{self.url}/api/stream", **options) as answer:  # type: ignore[arg-type]
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream"
            yield _frames(answer)


def _frames(answer: requests.Response) -> Iterator[tuple[str, dict[str, str]]]:
    found: dict[str, str] = {}
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        name, _, value = line.partition(": ")
        if line:
            found[name] = value
        elif "event" in found:
            yield found["event"], found
            found = {}
        else:
            found = {}


def serve_dashboard(serve: Serve, *args: str, app: str = WSGI, **options: Any) -> Dashboard:
    port = free_port()
    server = serve(app, "--dashboard-bind", f"127.0.0.1:{port}", *args, **options)
    return Dashboard(server, port)


def process_of(server: Server) -> int:
    """The pid of the dashboard's process: the child that listens for browsers."""
    titles = {pid: command_line(pid) for pid in server.children()}
    return next((pid for pid, title in titles.items() if "servo: dashboard" in title), 0)


# --- who may use it -------------------------------------------------------------------------------


def test_signing_in(serve: Serve) -> None:
    dashboard = serve_dashboard(serve)
    assert "sign-in" in dashboard.get("/").text
    for path in ("/api/history", "/api/stream", "/api/stack?slot=1"):
        assert dashboard.get(path).status_code == 401
    wrong = dashboard.post("/sign-in", data={"token": "wrong"})
    assert (wrong.status_code, dashboard.session.cookies.get_dict()) == (401, {})
    dashboard.server.wait_log("dashboard: 127.0.0.1 has sent a wrong token")
    right = dashboard.post("/sign-in", data={"token": dashboard.token})
    assert (right.status_code, right.url) == (200, f"{dashboard.url}/")
    assert "app.js" in right.text
    assert dashboard.get("/static/app.js").headers["content-type"].startswith("text/javascript")
    assert dashboard.history()["server"]["pid"] == dashboard.server.pid
    assert dashboard.post("/sign-out").status_code == 200
    assert dashboard.get("/api/history").status_code == 401
    bearer = {"Authorization": f"Bearer {dashboard.token}"}
    assert dashboard.get("/api/history", headers=bearer).status_code == 200
    assert_no_noise(dashboard.server)


def test_the_token_is_logged_once_and_not_for_operators(serve: Serve) -> None:
    dashboard = serve_dashboard(serve)
    token = dashboard.token
    old = dashboard.server.worker_pids()
    dashboard.server.signal(signal.SIGHUP)
    dashboard.server.wait_replaced(old)
    assert dashboard.server.log().count(token) == 1
    for command in ("logs", "report"):
        shown = servoctl("--pid", str(dashboard.server.pid), command)
        assert shown.returncode == 0
        assert "The dashboard is at" in shown.stdout
        assert token not in shown.stdout


def test_a_token_in_a_file(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a token of 23 characters\n")
    file.chmod(0o600)
    port = free_port()
    args = ("--dashboard-bind", f"0.0.0.0:{port}", "--dashboard-token-file", "token")
    dashboard = Dashboard(serve(WSGI, *args), port)
    fields = {"Authorization": "Bearer a token of 23 characters"}
    assert dashboard.get("/api/history", headers=fields).status_code == 200
    assert "23 characters" not in dashboard.server.log()


@pytest.mark.parametrize("bind", ["0.0.0.0:0", ":0", "[::]:0"])
@pytest.mark.parametrize("flags", [(), ("--check-config",)])
def test_a_public_address_without_a_token_file(
    tmp_path: Path, bind: str, flags: tuple[str, ...]
) -> None:
    args = ("--bind", "127.0.0.1:0", "--dashboard-bind", bind, *flags)
    done = run_servo(WSGI, *args, cwd=tmp_path)
    assert done.returncode not in (0, None)
    (line,) = [line for line in done.stderr.splitlines() if "dashboard" in line]
    assert "is not a loopback address: set dashboard_token_file to a file with a token" in line


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a token of 23 characters\n")
    file.chmod(0o644)
    args = ("--dashboard-bind", "127.0.0.1:0", "--dashboard-token-file", str(file))
    done = run_servo(WSGI, "--bind", "127.0.0.1:0", *args, cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert f"run chmod 600 {file}" in done.stderr


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, host: str) -> None:
        super().__init__(host, timeout=DEADLINE_S)
        self.path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(self.path)


def get_unix(path: Path, target: str, host: str = "localhost") -> tuple[int, bytes]:
    with contextlib.closing(UnixConnection(path, host)) as connection:
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.read()


def test_a_unix_socket_asks_for_no_token(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "dashboard.sock"
    server = serve(WSGI, "--dashboard-bind", f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    wait_for(lambda: _server(path).get("pid") == server.pid, "the description of the server")
    assert _server(path)["token"] is False
    assert b"app.js" in get_unix(path, "/")[1]
    # A page that has pointed its name at this machine (DNS rebinding).
    assert get_unix(path, "/api/history", "evil.example")[0] == 421
    assert get_unix(path, "/", "127.0.0.1.evil.example")[0] == 421
    server.stop()
    assert not path.exists()


def _server(path: Path) -> dict[str, Any]:
    status, body = get_unix(path, "/api/history")
    assert status == 200
    return dict(json.loads(body)["server"])


@needs_root
def test_the_process_gives_up_root_and_keeps_its_socket(serve: Serve, open_directory: Path) -> None:
    path = open_directory / "dashboard.sock"
    shutil.copy(APPS / "wsgi_app.py", open_directory)
    server = serve(
        *("wsgi_app:app", "--user", "nobody", "--worker-tmp-dir", "/dev/shm"),
        *("--dashboard-bind", f"unix:{path}", "--dashboard-control"),
        cwd=open_directory,
        env={"PYTHONPATH": str(open_directory)},
        command=command_for_everybody(open_directory),
    )
    # This interpreter may lack setproctitle, so the process has no title.
    (pid,) = set(server.children()) - set(server.worker_pids())
    wait_for(lambda: os.stat(f"/proc/{pid}").st_uid != 0, "another user")
    # Otherwise the app, which runs as this user, could connect.
    assert path.stat().st_uid == 0
    with contextlib.closing(UnixConnection(path, "localhost")) as connection:
        fields = {**CONTROL, "Content-Type": "application/json"}
        connection.request("POST", "/api/control", '{"command":"scale","workers":2}', fields)
        assert connection.getresponse().status == 200
    server.wait_workers(2)


def test_tls_with_the_servers_certificate(
    serve: Serve, authority: Authority, files: Files, tmp_path: Path
) -> None:
    port = free_port()
    bind = ("--dashboard-bind", f"127.0.0.1:{port}", "--dashboard-control")
    server = serve(WSGI, *bind, *files.flags, "--certfile-watch", "1")
    dashboard = Dashboard(server, port, "https", str(authority.path)).sign_in()
    (cookie,) = dashboard.session.cookies
    assert cookie.secure
    before = dashboard.wait(lambda sample: sample["state"] == "serving")["n"]
    plain = requests.get(f"http://127.0.0.1:{port}/", timeout=DEADLINE_S)
    assert plain.status_code == 400
    assert "HTTPS" in plain.text

    with httpx.Client(http2=True, verify=authority.client_context()) as client:
        fields = {"Authorization": f"Bearer {dashboard.token}", **CONTROL, "Origin": dashboard.url}
        answer = client.post(
            f"{dashboard.url}/api/control", json={"command": "scale", "workers": 2}, headers=fields
        )
    assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
    server.wait_workers(2)

    first = process_of(server)
    authority.issue("server")  # into the same files
    server.wait_log("The dashboard process .* is replaced: new certificates")
    wait_for(lambda: process_of(server) not in (0, first), "another process")
    history = dashboard.history()
    assert before in [sample["n"] for sample in history["samples"]]
    assert " [ERROR] " not in server.log()


# --- what it shows --------------------------------------------------------------------------------


def test_the_history_equals_the_counts_of_a_load_generator(serve: Serve) -> None:
    dashboard = serve_dashboard(serve, "-k", "sync", "-w", "2", ready=2).sign_in()
    server = dashboard.server
    answers = 0

    def under_load(step: Callable[[], object]) -> None:
        nonlocal answers
        with Load(server.port, {"raw-kept": 2, "requests-fresh": 1}) as load:
            load.wait_answers(40)
            step()
            load.wait_answers(40)
        assert load.failures == []
        answers += load.answers
        counted = dashboard.wait(lambda sample: sample["total"]["requests"] == answers)
        assert counted["total"]["2xx"] == answers

    def reload() -> None:
        old = server.worker_pids()
        server.signal(signal.SIGHUP)
        server.wait_replaced(old)

    for kill in (True, True, False):
        under_load(reload)
        if kill:
            # Not under load: a request that was answered, but not yet counted, would be lost.
            old = server.wait_workers(2)
            server.signal_worker(old[0], signal.SIGKILL)
            server.wait_replaced([old[0]], 2)
    last = dashboard.last()
    assert (last["total"]["requests"], last["total"]["5xx"]) == (answers, 0)
    assert last["generation"] == 4

    # The rates, which the page draws, add up to the same number.
    samples = dashboard.history()["samples"]
    drawn = sum(
        sample["rate"] * (sample["time"] - before["time"])
        for before, sample in zip(samples, samples[1:], strict=False)
    )
    assert drawn == pytest.approx(answers - samples[0]["total"]["requests"], rel=0.02)
    assert any(sample["p99"] for sample in samples)


def test_why_a_worker_was_replaced(serve: Serve) -> None:
    dashboard = serve_dashboard(serve, "-w", "2", ready=2).sign_in()
    victim, _ = dashboard.server.worker_pids()
    dashboard.server.signal_worker(victim, signal.SIGSEGV)
    sample = dashboard.wait(
        lambda sample: [w for w in sample["workers"] if "SIGSEGV" in w["last_exit"]]
    )
    assert any(w["last_exit"] == "" for w in sample["workers"])
    wait_for(lambda: dashboard.events("exited"), "the event")
    (event,) = dashboard.events("exited")
    assert (event["pid"], event["reason"]) == (victim, "crashed")


def test_a_reload_has_its_duration(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    dashboard.server.signal(signal.SIGHUP)
    wait_for(lambda: dashboard.events("reload_finished"), "the end of the reload")
    (event,) = dashboard.events("reload_finished")
    assert event["seconds"] > 0
    assert dashboard.events("reload_started")[0]["reason"] == "SIGHUP"


def test_a_stopped_server_is_lost_until_it_goes_on(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    dashboard.wait(lambda sample: sample["state"] == "serving")
    dashboard.server.signal(signal.SIGSTOP)
    try:
        lost = dashboard.wait(lambda sample: sample["state"] == "lost", "a lost server")
        assert (lost["rate"], lost["workers"]) == (None, [])
    finally:
        dashboard.server.signal(signal.SIGCONT)
    dashboard.wait(lambda sample: sample["state"] == "serving")


def test_the_stream_goes_on_after_the_last_sample(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    numbers: list[int] = []
    with dashboard.stream() as frames:
        event, fields = next(frames)
        assert event == "server"
        assert json.loads(fields["data"])["pid"] == dashboard.server.pid
        while len(numbers) < 2:
            event, fields = next(frames)
            if event == "sample":
                numbers.append(int(fields["id"]))
                assert json.loads(fields["data"])["n"] == numbers[-1]
    dashboard.wait(lambda sample: sample["n"] >= numbers[-1] + 3)
    with dashboard.stream(**{"Last-Event-ID": str(numbers[0])}) as frames:
        assert next(frames)[0] == "server"
        missed = [int(fields["id"]) for event, fields in (next(frames) for _ in range(3)) if "id"]
    assert missed == [numbers[0] + 1, numbers[0] + 2, numbers[0] + 3]


def test_events_come_through_the_stream(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    with dashboard.stream() as frames:
        assert next(frames)[0] == "server"
        dashboard.server.signal(signal.SIGHUP)
        names = []
        while "reload_finished" not in names:
            event, fields = next(frames)
            if event == "event":
                names.append(json.loads(fields["data"])["name"])
    assert names.index("reload_started") < names.index("booting")


# --- control --------------------------------------------------------------------------------------


def test_control_is_off_by_default(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    answer = dashboard.command(command="reload")
    assert (answer.status_code, answer.json()["ok"]) == (403, False)
    assert dashboard.get("/api/stack?slot=1").status_code == 403
    assert dashboard.history()["server"].get("control") is False
    assert "reload" not in dashboard.server.log()


def test_control_refuses_other_pages_and_strangers(serve: Serve) -> None:
    dashboard = serve_dashboard(serve, "--dashboard-control")
    assert dashboard.command(command="reload").status_code == 401
    dashboard.sign_in()
    body = {"json": {"command": "reload"}}
    for fields in (
        {**CONTROL, "Origin": "http://evil.example"},
        {**CONTROL, "Origin": dashboard.server.url},
        {**CONTROL, "Origin": "null"},
        {**CONTROL, "Sec-Fetch-Site": "same-site"},
        {},
    ):
        assert dashboard.post("/api/control", headers=fields, **body).status_code == 403
    form = {"data": '{"command":"reload"}', "headers": {**CONTROL, "Content-Type": "text/plain"}}
    assert dashboard.post("/api/control", **form).status_code == 403
    assert "reload" not in dashboard.server.log()


def test_control(serve: Serve) -> None:
    dashboard = serve_dashboard(serve, "--dashboard-control").sign_in()
    server = dashboard.server
    fields = {**CONTROL, "Origin": dashboard.url, "Sec-Fetch-Site": "same-origin"}
    scaled = dashboard.post("/api/control", json={"command": "scale", "workers": 2}, headers=fields)
    assert scaled.json() == {"ok": True, "text": "2 workers, 1 before"}
    workers = server.wait_workers(2)
    dashboard.wait(lambda sample: sample["target"] == len(sample["workers"]) == 2)

    assert dashboard.command(command="restart", slot=1).json()["ok"]
    wait_for(lambda: len(set(server.wait_workers(2)) - set(workers)) == 1, "one new worker")
    texts = [event["text"] for event in dashboard.events("draining")]
    assert any("an operator asked for its restart (dashboard)" in text for text in texts)

    workers = server.wait_workers(2)
    assert dashboard.command(command="reload").json()["ok"]
    server.wait_replaced(workers)
    wait_for(lambda: dashboard.events("reload_finished"), "the end of the reload")
    assert dashboard.events("reload_started")[0]["reason"] == "dashboard"
    assert dashboard.events("scaled")[0]["reason"] == "dashboard"
    server.wait_log("dashboard: 127.0.0.1 sends the command")

    assert "thread MainThread" in dashboard.get("/api/stack?slot=1").json()["text"]
    refused = dashboard.command(command="restart", slot=9)
    assert refused.status_code == 409
    assert "no worker serves in slot 9" in refused.json()["error"]
    assert_no_noise(server)


def test_without_a_control_socket(serve: Serve) -> None:
    dashboard = serve_dashboard(serve, "--no-control-socket", "--dashboard-control").sign_in()
    dashboard.wait(lambda sample: sample["state"] == "serving")
    assert dashboard.command(command="scale", workers=2).status_code == 200
    dashboard.server.wait_workers(2)


# --- many and hostile clients ---------------------------------------------------------------------


def test_fifty_browsers(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    cookie = "; ".join(f"{k}={v}" for k, v in dashboard.session.cookies.items())
    failures: list[object] = []

    def browse() -> None:
        try:
            fields = {"Cookie": cookie}
            with requests.get(
                f"{dashboard.url}/api/stream", headers=fields, stream=True, timeout=DEADLINE_S
            ) as answer:
                frames = _frames(answer)
                samples = 0
                while samples < 3:
                    samples += next(frames)[0] == "sample"
            history = requests.get(
                f"{dashboard.url}/api/history", headers=fields, timeout=DEADLINE_S
            )
            assert len(history.json()["samples"]) >= 3
        except (OSError, AssertionError, StopIteration, ValueError) as error:
            failures.append(error)

    threads = [threading.Thread(target=browse) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE_S)
        assert not thread.is_alive()
    assert failures == []
    assert memory(process_of(dashboard.server)) < 40 << 20
    assert_no_noise(dashboard.server)


def test_too_many_streams(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    with contextlib.ExitStack() as opened:
        # Keep them: urllib3 closes the connection of a response that is collected.
        streams = [opened.enter_context(dashboard.stream()) for _ in range(MOST_STREAMS)]
        assert {next(frames)[0] for frames in streams} == {"server"}
        assert dashboard.get("/api/stream").status_code == 503
        assert dashboard.get("/api/history").status_code == 200
    wait_for(lambda: _can_stream(dashboard), "a free stream")


def _can_stream(dashboard: Dashboard) -> bool:
    with dashboard.session.get(
        f"{dashboard.url}/api/stream", stream=True, timeout=DEADLINE_S
    ) as answer:
        return answer.status_code == 200


def test_a_browser_that_never_reads_is_cut_off(serve: Serve) -> None:
    dashboard = serve_dashboard(serve, "-w", "16", ready=16).sign_in()
    cookie = "; ".join(f"{k}={v}" for k, v in dashboard.session.cookies.items())
    head = f"GET /api/stream HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 1\r\nCookie: {cookie}\r\n\r\n"
    pid = process_of(dashboard.server)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect(("127.0.0.1", int(dashboard.url.rpartition(":")[2])))
        sock.sendall(head.encode())
        ours = sock.getsockname()[1]
        wait_for(lambda: _is_connected(ours), "a connection")
        wait_for(lambda: not _is_connected(ours), "the end of the connection", 100.0, 0.5)
    assert process_of(dashboard.server) == pid
    assert memory(pid) < 40 << 20
    assert_no_noise(dashboard.server)


def _is_connected(port: int) -> bool:
    """Whether the peer of this client port still has the connection."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, remote, state = line.split()[1:4]
        if int(remote.rpartition(":")[2], 16) == port and state == "01":
            return True
    return False


# --- what it survives -----------------------------------------------------------------------------


def test_a_killed_process_is_followed_by_another_with_its_history(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    server = dashboard.server
    before = dashboard.wait(lambda sample: sample["state"] == "serving")["n"]
    first = process_of(server)
    os.kill(first, signal.SIGKILL)
    server.wait_log(rf"The dashboard process \(pid {first}\) ended by SIGKILL; another follows")
    wait_for(lambda: process_of(server) not in (0, first), "another process")
    samples = dashboard.history()["samples"]
    assert before in [sample["n"] for sample in samples]
    dashboard.wait(lambda sample: sample["n"] > samples[-1]["n"])
    assert requests.get(server.url, timeout=DEADLINE_S).status_code == 200


@pytest.mark.parametrize("flags", [(), ("--preload",)])
def test_workers_have_no_part_of_it(serve: Serve, flags: tuple[str, ...]) -> None:
    """Neither its files nor a connection with which it controls the server."""
    dashboard = serve_dashboard(serve, "--dashboard-control", "-w", "2", *flags, ready=2).sign_in()
    dashboard.wait(lambda sample: sample["state"] == "serving")
    mine = _descriptors(process_of(dashboard.server))
    assert any("servo-dashboard-key" in name for name in mine)
    private = {name for name in mine if "dashboard" in name or name.startswith("socket:")}
    assert len(private) >= 2 + 3 + 1
    for _ in range(2):
        workers = dashboard.server.wait_workers(2)
        for pid in workers:
            assert not private & _descriptors(pid)
        # Those of a reload are forked when the arbiter has its ends of the connections.
        dashboard.server.signal(signal.SIGHUP)
        dashboard.server.wait_replaced(workers)


def _descriptors(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def test_a_daemon_has_a_dashboard(serve: Serve, tmp_path: Path) -> None:
    path, pidfile, log = tmp_path / "dashboard.sock", tmp_path / "pid", tmp_path / "log"
    flags = ("--daemon", "--pid", str(pidfile), "--error-logfile", str(log))
    server = serve(WSGI, *flags, "--dashboard-bind", f"unix:{path}", ready=0)
    assert server.wait_exit() == 0
    pid = int(pidfile.read_text())
    server.sessions.add(os.getsid(pid))
    assert get_unix(path, "/api/history")[0] == 200
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not alive(pid), "end of the daemon")
    assert not path.exists()
    assert "ERROR" not in log.read_text()


def test_a_reload_does_not_end_the_process(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    server = dashboard.server
    pid, old = process_of(server), server.worker_pids()
    with dashboard.stream() as frames:
        server.signal(signal.SIGHUP)
        server.wait_replaced(old)
        dashboard.wait(lambda sample: sample["generation"] == 2)
        for event, fields in frames:
            if event == "sample" and json.loads(fields["data"])["generation"] == 2:
                break
    assert process_of(server) == pid


def test_an_upgrade_keeps_token_cookie_and_history(serve: Serve) -> None:
    dashboard = serve_dashboard(serve, "--dashboard-control").sign_in()
    server, token = dashboard.server, dashboard.token
    requests.get(server.url, timeout=DEADLINE_S)
    before = dashboard.wait(lambda sample: sample["total"]["requests"] == 1)["n"]
    first, old = process_of(server), server.worker_pids()
    server.signal(signal.SIGUSR2)
    server.wait_log("upgraded: Servo")
    server.wait_replaced(old)
    wait_for(lambda: process_of(server) not in (0, first), "another process")
    assert not alive(first)
    history = dashboard.history()
    assert before in [sample["n"] for sample in history["samples"]]
    sample = dashboard.wait(lambda sample: sample["n"] > history["samples"][-1]["n"])
    assert sample["total"]["requests"] == 1
    assert [event["name"] for event in history["events"]].count("reload_started") == 1
    bearer = {"Authorization": f"Bearer {token}"}
    assert requests.get(f"{dashboard.url}/api/history", headers=bearer, timeout=DEADLINE_S).ok
    assert server.log().count(token) == 1
    assert dashboard.command(command="scale", workers=2).status_code == 200
    server.wait_workers(2)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_ends_it_quietly(serve: Serve, signum: signal.Signals) -> None:
    """A terminal sends SIGINT to all processes of a server, and systemd SIGTERM."""
    dashboard = serve_dashboard(serve).sign_in()
    with dashboard.stream() as frames:
        assert next(frames)[0] == "server"
        os.killpg(dashboard.server.pid, signum)
        assert dashboard.server.wait_exit() == 0
    assert_no_noise(dashboard.server)


def test_logs_are_reopened(serve: Serve, tmp_path: Path) -> None:
    flags = ("--error-logfile", "error.log", "--dashboard-control")
    dashboard = serve_dashboard(serve, *flags, ready=0)
    log = tmp_path / "error.log"
    wait_for(lambda: log.exists() and " is ready " in log.read_text(), "a ready worker")
    token = re.search(r"token=(\S+)", log.read_text())
    assert token is not None
    assert dashboard.get(f"/?token={token[1]}").status_code == 200
    log.rename(tmp_path / "old.log")
    pid = process_of(dashboard.server)
    dashboard.server.signal(signal.SIGUSR1)
    wait_for(log.exists, "a new log")

    def is_written() -> bool:
        dashboard.command(command="restart", slot=9)
        return "dashboard: 127.0.0.1 sends" in log.read_text()

    wait_for(is_written, "the line of the dashboard's process", every_s=0.2)
    assert process_of(dashboard.server) == pid


def test_it_ends_with_its_arbiter(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    pid = process_of(dashboard.server)
    dashboard.server.signal(signal.SIGKILL)
    wait_for(lambda: not alive(pid), "end of the dashboard")


def test_a_stopped_process_ends_with_its_arbiter(serve: Serve) -> None:
    dashboard = serve_dashboard(serve).sign_in()
    pid = process_of(dashboard.server)
    os.kill(pid, signal.SIGSTOP)
    dashboard.server.signal(signal.SIGKILL)
    wait_for(lambda: not alive(pid), "end of the dashboard")


def test_the_process_is_small(serve: Serve) -> None:
    dashboard = serve_dashboard(serve, "-w", "4", ready=4).sign_in()
    for path in ("/", "/api/history", "/static/app.js"):
        assert dashboard.get(path).status_code == 200
    pid = process_of(dashboard.server)
    assert memory(pid) < 40 << 20
    assert (proportional_of(pid) or 0) < 40 << 20


def test_without_the_setting_there_is_no_process(serve: Serve) -> None:
    server = serve(WSGI)
    assert not process_of(server)
    assert not re.search("dashboard", server.log())
