"""Servo and its peers side by side, in one run: CPU time of the whole server per request.

    make bench                                              everything, about ten minutes
    make bench ARGS="--servers servo-async,uvicorn --rounds 5"
    make bench ARGS="--list"

Each round starts every server anew, one after another, so that a machine that slows down slows all
of them. A server has core 0 for itself, the load generator core 1. Everything runs on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
ENVIRONMENT = REPOSITORY / ".bench"
LOG = ENVIRONMENT / "server.log"
RESULTS = REPOSITORY / "docs" / "benchmarks"

PORT = 18_765
CONNECTIONS = 64
WARM_UP_S = 1.0

BIND = f"127.0.0.1:{PORT}"
SERVO = ["-m", "servo", "--bind", BIND, "--workers", "1", "--log-level", "warning"]
GUNICORN = ["-m", "gunicorn", "--bind", BIND, "--workers", "1", "--log-level", "warning"]
GRANIAN = ["-m", "granian", "--port", str(PORT), "--workers", "1", "--no-access-log"]
UVICORN = [
    *("-m", "uvicorn", "--port", str(PORT), "--http", "httptools", "--loop", "uvloop"),
    *("--no-access-log", "--log-level", "warning"),
]
FAST = (
    "import fastpysgi, apps; fastpysgi.server.log_level = 1;"
    f"fastpysgi.run(apps.{{}}, '127.0.0.1', {PORT})"
)

# name -> (interface, arguments of the interpreter). One worker each, no access log.
SERVERS: dict[str, tuple[str, list[str]]] = {
    "servo-sync": ("wsgi", [*SERVO, "-k", "sync", "apps:wsgi"]),
    "servo-thread": ("wsgi", [*SERVO, "-k", "thread", "--threads", "4", "apps:wsgi"]),
    "gunicorn-gthread": (
        "wsgi",
        [*GUNICORN, "-k", "gthread", "--threads", "4", "--keep-alive", "75", "apps:wsgi"],
    ),
    "granian-wsgi": ("wsgi", [*GRANIAN, "--interface", "wsgi", "apps:wsgi"]),
    "waitress": ("wsgi", ["-m", "waitress", f"--listen={BIND}", "--threads=4", "apps:wsgi"]),
    "fastpysgi-wsgi": ("wsgi", ["-c", FAST.format("wsgi")]),
    "servo-async": ("asgi", [*SERVO, "-k", "async", "apps:asgi"]),
    "uvicorn": ("asgi", [*UVICORN, "apps:asgi"]),
    "granian-asgi": ("asgi", [*GRANIAN, "--interface", "asgi", "apps:asgi"]),
    "hypercorn": ("asgi", ["-m", "hypercorn", "--bind", BIND, "-k", "uvloop", "apps:asgi"]),
    "fastpysgi-asgi": ("asgi", ["-c", FAST.format("asgi")]),
    "servo-websocket": ("websocket", [*SERVO, "-k", "async", "apps:asgi"]),
    "uvicorn-websockets": ("websocket", [*UVICORN, "--ws", "websockets", "apps:asgi"]),
    "uvicorn-sansio": ("websocket", [*UVICORN, "--ws", "websockets-sansio", "apps:asgi"]),
    "uvicorn-wsproto": ("websocket", [*UVICORN, "--ws", "wsproto", "apps:asgi"]),
    "hypercorn-websocket": (
        "websocket",
        ["-m", "hypercorn", "--bind", BIND, "-k", "uvloop", "apps:asgi"],
    ),
    "granian-websocket": ("websocket", [*GRANIAN, "--interface", "asgi", "apps:asgi"]),
    "servo-http2": (
        "http2",
        [*SERVO, "-k", "async", "--http2-cleartext", "prior-knowledge", "apps:asgi"],
    ),
    "hypercorn-http2": (
        "http2",
        [
            *("-m", "hypercorn", "--bind", BIND, "-k", "uvloop"),
            *("--config", "hypercorn_http2.toml", "apps:asgi"),
        ],
    ),
    "granian-http2": ("http2", [*GRANIAN, "--http", "2", "--interface", "asgi", "apps:asgi"]),
}

# The same servers, and their ways to say where certificate and key are (both are in one file).
CERTIFICATE = ENVIRONMENT / "certificate.pem"
_TLS_FLAGS = {
    "servo": ("--certfile",),
    "gunicorn": ("--certfile", "--keyfile"),
    "uvicorn": ("--ssl-certfile", "--ssl-keyfile"),
    "hypercorn": ("--certfile", "--keyfile"),
    "granian": ("--ssl-certificate", "--ssl-keyfile"),
}
for _name in (
    *("servo-sync", "servo-thread", "gunicorn-gthread", "granian-wsgi"),
    *("servo-async", "uvicorn", "hypercorn", "granian-asgi"),
):
    _flags = [part for f in _TLS_FLAGS[_name.split("-")[0]] for part in (f, str(CERTIFICATE))]
    SERVERS[f"{_name}-tls"] = (f"{SERVERS[_name][0]}-tls", [*SERVERS[_name][1], *_flags])

# What a browser sends, 12 header fields with Host.
BROWSER = [
    ("Connection", "keep-alive"),
    ("Cache-Control", "max-age=0"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("Accept-Language", "en-GB,en;q=0.5"),
    ("Accept-Encoding", "gzip, deflate, br"),
    ("Referer", "https://example.com/some/page?with=a&query=string"),
    ("Cookie", "session=0123456789abcdef0123456789abcdef; theme=dark; seen=1"),
    ("Upgrade-Insecure-Requests", "1"),
    ("Sec-Fetch-Dest", "document"),
    ("Sec-Fetch-Mode", "navigate"),
]
WORKLOADS: dict[str, list[tuple[str, str]]] = {"hello": [], "browser": BROWSER}

# GET over TLS 1.3: on kept connections, and with a handshake for each request (none is resumed).
SECURE: dict[str, list[tuple[str, str]]] = {
    "tls": [],
    "tls-browser": BROWSER,
    "tls-fresh": [("Connection", "close")],
}

# GET over HTTP/2 (prior knowledge), by h2load: connections, and requests at a time on each. uvicorn
# speaks it only with a parser of its own that has to be chosen by its path.
HTTP2: dict[str, list[tuple[str, str]]] = {"http2": [], "http2-browser": BROWSER[1:]}
HTTP2_CONNECTIONS, HTTP2_STREAMS = 8, 8

# Echoes over WebSocket: bytes of a message, and connections. Nothing is compressed.
ECHOES = {"echo-32": (32, CONNECTIONS), "echo-1M": (1 << 20, 4)}


def main() -> None:
    options = arguments()
    if options.list:
        print("\n".join(SERVERS))
        return
    python = prepare(options.python)
    record = describe_machine(python)
    if set(options.workloads) & set(SECURE):
        make_certificate()
    samples: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number in range(options.rounds):
        # A server's place in the order changes: nobody is always the one after the heaviest.
        turn = number % len(options.servers)
        for name in options.servers[turn:] + options.servers[:turn]:
            for workload, sample in measure(python, name, options).items():
                samples.setdefault(workload, {}).setdefault(name, []).append(sample)
                print(
                    f"round {number + 1}/{options.rounds}  {name:17} {workload:8}"
                    f" {sample['cpu_us']:7.1f} µs  {sample['rps']:9,.0f}/s",
                    flush=True,
                )
    summary = summarise(samples)
    record.update(rounds=options.rounds, duration_s=options.duration, results=summary)
    report = markdown(record)
    print("\n" + report)
    if options.save:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{options.save}.json").write_text(json.dumps(record, indent=1) + "\n")
        (RESULTS / f"{options.save}.md").write_text(report)
        print(f"written to {RESULTS.relative_to(REPOSITORY)}/{options.save}.md and .json")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=4.0, help="seconds of each measurement")
    parser.add_argument("--servers", default=",".join(SERVERS), help="names, comma-separated")
    parser.add_argument(
        "--workloads",
        default=",".join([*WORKLOADS, *SECURE, *HTTP2, *ECHOES]),
        help="hello,browser,tls,tls-browser,tls-fresh,http2,http2-browser,echo-32,echo-1M",
    )
    parser.add_argument("--python", default=default_python(), help="the interpreter to measure on")
    parser.add_argument("--save", default="latest", help="name of the result; empty: don't save")
    parser.add_argument("--list", action="store_true", help="list the servers")
    options = parser.parse_args()
    options.servers = chosen(parser, options.servers, SERVERS)
    workloads = {**WORKLOADS, **SECURE, **HTTP2, **ECHOES}
    options.workloads = chosen(parser, options.workloads, workloads)
    # Bounded, whatever is asked for.
    options.rounds = max(1, min(options.rounds, 20))
    options.duration = max(0.5, min(options.duration, 30.0))
    return options


def chosen(parser: argparse.ArgumentParser, text: str, known: dict[str, object]) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def default_python() -> str:
    """A distribution's interpreter is built with PGO and LTO; a self-built one often is not."""
    system = "/usr/bin/python3"
    if os.access(system, os.X_OK):
        check = [system, "-c", "import sys, venv; sys.exit(sys.version_info < (3, 10))"]
        if subprocess.run(check, capture_output=True, check=False).returncode == 0:
            return system
    return sys.executable


# --- the environment ------------------------------------------------------------------------------


def prepare(interpreter: str) -> str:
    """An environment with Servo and its pinned peers; the path of its interpreter."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".installed"
    wanted = f"{interpreter}\n{(HERE / 'requirements.txt').read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    print(f"installing the peers into {ENVIRONMENT.name}/ …", flush=True)
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    # Debian's interpreter may come without ensurepip: any pip can install into any environment.
    subprocess.run([interpreter, "-m", "venv", "--without-pip", str(ENVIRONMENT)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--disable-pip-version-check", "-r", str(HERE / "requirements.txt")]
    subprocess.run([*pip, "-e", f"{REPOSITORY}[standard]"], check=True)
    stamp.write_text(wanted)
    return str(python)


def make_certificate() -> None:
    """A throw-away certificate (ECDSA, P-256) and its key, in one file."""
    key, certificate = ENVIRONMENT / "key.pem", ENVIRONMENT / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "30", "-subj", "/CN=localhost", "-addext"]
    command += ["subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    CERTIFICATE.write_bytes(key.read_bytes() + certificate.read_bytes())


def describe_machine(python: str) -> dict[str, object]:
    ask = (
        "import json, platform, importlib.metadata as m; print(json.dumps([platform."
        "python_version(), {d.name.lower(): d.version for d in m.distributions()}]))"
    )
    version, packages = json.loads(subprocess.check_output([python, "-c", ask], text=True))
    real = os.path.realpath(python)
    build = "the distribution's build" if real.startswith("/usr/bin/") else "a build of its own"
    names = (
        "fastpysgi granian gunicorn httptools hypercorn servo-server uvicorn uvloop waitress"
        " websockets wsproto"
    )
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": f"CPython {version} ({real}, {build})",
        "cpu": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "load": f"{'wrk' if shutil.which('wrk') else 'bench/client.py'}, {CONNECTIONS} connections",
        "versions": {name: packages.get(name, "-") for name in names.split()},
    }


# --- one server -----------------------------------------------------------------------------------


def measure(python: str, name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Start the server, run every workload that suits it, end it."""
    interface = SERVERS[name][0]
    suited = {"websocket": ECHOES, "http2": HTTP2}.get(interface, WORKLOADS)
    if interface.endswith("-tls"):
        suited = SECURE
    workloads = [workload for workload in options.workloads if workload in suited]
    if not workloads:
        return {}
    with running(python, name) as session:
        found = {}
        for workload in workloads:
            generate(workload, WARM_UP_S)
            before = cpu_seconds(session)
            load = generate(workload, options.duration)
            used = cpu_seconds(session) - before
            if load["errors"] or not load["requests"]:
                raise SystemExit(f"{name}, {workload}: {load}\n{LOG.read_text()[-2000:]}")
            found[workload] = {
                "cpu_us": used / load["requests"] * 1e6,
                "rps": load["requests"] / load["seconds"],
                "p50_ms": load["p50_ms"],
                "p99_ms": load["p99_ms"],
                "pss_mb": memory_mb(session),
            }
        return found


@contextlib.contextmanager
def running(python: str, name: str) -> Iterator[int]:
    """The server in a session of its own on the first core; every process of it ends with this."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SERVO_", "GUNICORN_"))}
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            [python, *SERVERS[name][1]],
            cwd=HERE,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    pin(process.pid, first=True)
    try:
        wait_open(process, name)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pid in members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)
        wait_closed()


def pin(pid: int, first: bool) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(pid, {cores[0 if first else 1]})


def wait_open(process: subprocess.Popen[bytes], name: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"{name} ended with {process.returncode}:\n{LOG.read_text()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"{name} did not open its port")


def wait_closed() -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)):
                return
        time.sleep(0.05)
    raise SystemExit(f"port {PORT} is still open")


def members(session: int) -> list[int]:
    """The live processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        fields = stat_fields(entry) if entry.isdigit() else []
        if fields and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry))
    return found


def stat_fields(pid: str) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, group, session, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(session: int) -> float:
    """User and system time of every process of the session, all threads, reaped children too."""
    ticks = 0
    for pid in members(session):
        if fields := stat_fields(str(pid)):
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(session: int) -> float:
    """Proportional set size: shared pages are divided among those who share them."""
    total = 0
    for pid in members(session):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int((re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE) or [0, 0])[1])
    return total / 1024


# --- the load -------------------------------------------------------------------------------------


def generate(workload: str, seconds: float) -> dict[str, float]:
    """Run the load generator for that long; requests, seconds, p50_ms, p99_ms, errors."""
    if workload in ECHOES:
        size, connections = ECHOES[workload]
        echo = [sys.executable, str(HERE / "websocket_client.py"), str(PORT), str(seconds)]
        return dict(json.loads(run_pinned([*echo, str(connections), str(size)], seconds)))
    if workload in HTTP2:
        return load_http2(HTTP2[workload], seconds)
    secure = workload in SECURE
    headers = SECURE[workload] if secure else WORKLOADS[workload]
    wrk = shutil.which("wrk")
    if wrk:
        command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--latency"]
        for name, value in headers:
            command += ["-H", f"{name}: {value}"]
        return parse_wrk(run_pinned([*command, f"http{'s' * secure}://{BIND}/"], seconds))
    if secure:
        raise SystemExit("TLS is measured with wrk (Debian: apt-get install wrk)")
    client = [sys.executable, str(HERE / "client.py"), str(PORT), str(seconds), str(CONNECTIONS)]
    return dict(json.loads(run_pinned([*client, json.dumps(headers)], seconds)))


def load_http2(headers: list[tuple[str, str]], seconds: float) -> dict[str, float]:
    """GET over HTTP/2 by h2load (Debian: nghttp2-client)."""
    program = shutil.which("h2load")
    if program is None:
        raise SystemExit("no h2load here (Debian: apt-get install nghttp2-client)")
    command = [program, f"-c{HTTP2_CONNECTIONS}", f"-m{HTTP2_STREAMS}", f"-D{seconds:g}"]
    for name, value in headers:
        command += ["-H", f"{name.lower()}: {value}"]
    log = ENVIRONMENT / "h2load.log"
    log.unlink(missing_ok=True)
    text = run_pinned([*command, f"--log-file={log}", f"http://{BIND}/"], seconds)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", text)
    if counts is None:
        raise SystemExit(f"h2load said:\n{text}")
    times = sorted(int(line.rsplit("\t", 1)[1]) for line in log.read_text().splitlines())
    return {
        "requests": float(counts[1]),
        "seconds": seconds,
        "p50_ms": times[len(times) // 2] / 1000 if times else 0.0,
        "p99_ms": times[len(times) * 99 // 100] / 1000 if times else 0.0,
        "errors": float(counts[2]) + float(counts[3]),
    }


def run_pinned(command: list[str], seconds: float) -> str:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pin(process.pid, first=False)
    try:
        return process.communicate(timeout=seconds + 30)[0]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def parse_wrk(text: str) -> dict[str, float]:
    def number(pattern: str) -> float:
        found = re.search(pattern, text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def milliseconds(percentile: str) -> float:
        found = re.search(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s)", text, re.MULTILINE)
        return float(found[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[found[2]] if found else 0.0

    requests = number(r"(\d+) requests in")
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    return {
        "requests": requests,
        "seconds": requests / (number(r"Requests/sec:\s+([\d.]+)") or 1),
        "p50_ms": milliseconds("50"),
        "p99_ms": milliseconds("99"),
        "errors": number(r"Non-2xx or 3xx responses: (\d+)")
        + (sum(map(int, errors.groups())) if errors else 0),
    }


# --- the result -----------------------------------------------------------------------------------


def summarise(
    samples: dict[str, dict[str, list[dict[str, float]]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Medians over the rounds, and the least and greatest CPU time."""
    return {
        workload: {
            name: {
                **{key: statistics.median(s[key] for s in taken) for key in taken[0]},
                "cpu_us_min": min(s["cpu_us"] for s in taken),
                "cpu_us_max": max(s["cpu_us"] for s in taken),
            }
            for name, taken in servers.items()
        }
        for workload, servers in samples.items()
    }


def markdown(record: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        "---",
        "orphan: true",
        "---",
        "",
        "# Servo and its peers",
        "",
        f"Measured {record['date']} on {record['python']}; {record['cpu']}; Linux"
        f" {record['kernel']}; {record['load']}; one worker on one core; medians of"
        f" {record['rounds']} rounds of {record['duration_s']:g} s.",
        "",
        f"{versions}.",
    ]
    for workload, servers in record["results"].items():
        for interface in ("wsgi", "asgi", "wsgi-tls", "asgi-tls", "http2", "websocket"):
            rows = {n: row for n, row in servers.items() if SERVERS[n][0] == interface}
            if rows:
                titles = {"websocket": "WebSocket", "http2": "HTTP/2"}
                title = titles.get(interface, interface.upper().replace("-TLS", " over TLS"))
                lines += ["", f"## {title}, {workload}", "", *table(rows)]
    return "\n".join(lines) + "\n"


def table(rows: dict[str, dict[str, float]]) -> list[str]:
    """One workload and interface; the ratio is Servo's best CPU time over the row's."""
    own = [row["cpu_us"] for name, row in rows.items() if name.startswith("servo")]
    lines = [
        "| server | CPU µs/request | (least–most) | Servo/this | requests/s | p50 ms | p99 ms |"
        " PSS MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["cpu_us"]):
        ratio = f"{min(own) / row['cpu_us']:.2f}" if own else "-"
        lines.append(
            f"| {name} | {row['cpu_us']:.1f} | {row['cpu_us_min']:.1f}–{row['cpu_us_max']:.1f}"
            f" | {ratio} | {row['rps']:,.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f}"
            f" | {row['pss_mb']:.1f} |"
        )
    return lines


if __name__ == "__main__":
    main()
