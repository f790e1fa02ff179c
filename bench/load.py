"""The load generators: wrk, h2load, generator.c, and Python clients for the rest.

Each function returns a Load, and raises FailedError if too many requests fail.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

from process import CORES, FailedError
from servers import BIND, GENERATOR, HERE, POLLING, PORT, WORK
from workloads import STATIC, Request, Workload

# {"requests": …, "seconds": …, "p50_ms": …, "p99_ms": …, "p999_ms": …, "errors": …}
Load = dict[str, float]

# A server with a larger share of errors counts as unable to take the load (0.01 is 1 %).
ERRORS = 0.01
# How long wrk waits for a response, s. This is long, because a slow response is not an error.
PATIENCE_S = 10


def closed(workload: Workload, seconds: float, port: int = PORT, polls: bool = True) -> Load:
    """Send a request on each connection, and the next one as soon as it is answered.

    polls  False: the load generator sleeps while it waits, because another program needs its core
    """
    if workload.per_connection or workload.pipelined:
        return checked(generator(workload, seconds, port))
    if shutil.which("wrk"):
        return checked(wrk(workload, seconds, port, polls))
    if port != PORT or workload.setup.tls or workload.request.varies:
        raise FailedError("this needs wrk, which is not here (Debian: apt-get install wrk)")
    return checked(client(workload, seconds))


def wrk(workload: Workload, seconds: float, port: int, polls: bool) -> Load:
    request = workload.request
    scheme = "https" if workload.setup.tls else "http"
    command = ["wrk", "-t1", f"-c{workload.connections}", f"-d{max(1, round(seconds))}s"]
    command += ["--timeout", f"{PATIENCE_S}s", "-s", str(HERE / "wrk.lua")]
    for name, value in request.fields:
        command += ["-H", f"{name}: {value}"]
    command.append(f"{scheme}://127.0.0.1:{port}{request.path}")
    if request.body:
        body = WORK / "body"
        body.write_bytes(request.body)
        command += ["--", "body", str(body)]
    elif request.varies == "static":
        command += ["--", "paths", *(f"/static/{name}" for name in STATIC)]
    elif request.varies:
        command += ["--", request.varies]
    command = awake(command) if polls else command
    return dict(json.loads(run(command, seconds).strip().rpartition("\n")[2]))


def generator(workload: Workload, seconds: float, port: int = PORT, rate: float = 0) -> Load:
    """Run `generator.c`.

    rate  requests/s; 0: as fast as they are answered
    """
    path = WORK / "request"
    path.write_bytes(request_bytes(workload.request, port))
    command = [str(GENERATOR), str(port), str(seconds), str(workload.connections), str(path)]
    command += [str(workload.per_connection), str(workload.pipelined or 1), str(rate)]
    return dict(json.loads(run(awake(command), seconds)))


def request_bytes(request: Request, port: int) -> bytes:
    """The request as it goes over the wire."""
    lines = [f"{'POST' if request.body else 'GET'} {request.path} HTTP/1.1"]
    lines += [f"Host: 127.0.0.1:{port}", *(f"{name}: {value}" for name, value in request.fields)]
    if request.body:
        lines.append(f"Content-Length: {len(request.body)}")
    return "\r\n".join([*lines, "", ""]).encode() + request.body


def client(
    workload: Workload, seconds: float, rate: float = 0, slow_every: int = 0, slow_path: str = ""
) -> Load:
    """Run `client.py`, which works like wrk.

    rate        requests/s; 0: as fast as they are answered
    slow_every  every n-th request goes to `slow_path`; 0: none does
    """
    request = workload.request
    spec = {
        "port": PORT,
        "seconds": seconds,
        "connections": workload.connections,
        "rate": rate,
        "path": request.path,
        "fields": request.fields,
        "body_bytes": len(request.body),
        "slow_every": slow_every,
        "slow_path": slow_path,
    }
    if request.body:
        (WORK / "body").write_bytes(request.body)
        spec["body_file"] = str(WORK / "body")
    return dict(json.loads(run(python_client("client.py", json.dumps(spec)), seconds)))


def paced(workload: Workload, seconds: float, rate: float) -> Load:
    """Send requests at a fixed rate (requests/s). A latency counts from the time when its request
    was due, so a server that stalls is charged for all requests that had to wait."""
    return checked(generator(workload, seconds, rate=rate))


def resumed(workload: Workload, seconds: float) -> Load:
    """Open connections that resume the TLS session of the one before."""
    arguments = (PORT, seconds, workload.connections)
    return checked(dict(json.loads(run(python_client("tls_client.py", *arguments), seconds))))


def mixed(workload: Workload, seconds: float, rate: float, slow_every: int) -> Load:
    """Mix fast and slow requests; the latencies are those of the fast ones.

    slow_every  every n-th request is slow; 0: none is
    """
    return checked(client(workload, seconds, rate, slow_every, "/slow"))


def echo(workload: Workload, seconds: float) -> Load:
    arguments = (PORT, seconds, workload.connections, workload.size)
    return checked(dict(json.loads(run(python_client("websocket_client.py", *arguments), seconds))))


def http2(workload: Workload, seconds: float) -> Load:
    """GET by h2load (Debian: nghttp2-client)."""
    if shutil.which("h2load") is None:
        raise FailedError("h2load is not here (Debian: apt-get install nghttp2-client)")
    scheme = "https" if workload.setup.tls else "http"
    command = ["h2load", f"-c{workload.connections}", f"-m{workload.streams}", f"-D{seconds:g}"]
    for name, value in workload.request.fields:
        command += ["-H", f"{name.lower()}: {value}"]
    log = WORK / "h2load.log"
    log.unlink(missing_ok=True)
    text = run(awake([*command, f"--log-file={log}", f"{scheme}://{BIND}/"]), seconds)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", text)
    statuses = re.search(r"status codes: (\d+) 2xx", text)
    if counts is None or statuses is None:
        raise FailedError(f"h2load said: {text.strip()[-200:]}")
    if "Application protocol: http/1.1" in text:
        raise FailedError("spoke HTTP/1.1")
    times = [int(line.rsplit("\t", 1)[1]) for line in log.read_text().splitlines()]
    requests = float(statuses[1])
    errors = float(counts[1]) - requests + float(counts[2]) + float(counts[3])
    return checked(
        {"requests": requests, "seconds": seconds, "errors": max(0.0, errors)}
        | percentiles([us / 1000 for us in times])
    )


def percentiles(times_ms: list[float]) -> Load:
    times = sorted(times_ms) or [0.0]
    at = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}
    return {name: times[min(len(times) - 1, int(len(times) * p))] for name, p in at.items()}


def checked(load: Load) -> Load:
    if not load["requests"]:
        raise FailedError(f"answered nothing ({load['errors']:.0f} errors)")
    if load["errors"] > ERRORS * load["requests"]:
        raise FailedError(f"{load['errors']:.0f} errors beside {load['requests']:.0f} answers")
    return load


def python_client(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def awake(command: list[str]) -> list[str]:
    """Make a load generator poll instead of sleeping, so that no server pays for waking it. With a
    single core, leave it as it is: polling would take the server's time."""
    return ["env", f"LD_PRELOAD={POLLING}", *command] if len(CORES) > 1 else command


def run(command: list[str], seconds: float) -> str:
    """Run a load generator, which inherits the second core; return its output.

    seconds  the length of the load. Raises FailedError.
    """
    limit = seconds + 2 * PATIENCE_S + 10
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise FailedError(f"the load did not end within {limit:g} s") from None
        finally:
            if process.poll() is None:
                process.kill()
    if process.returncode:
        raise FailedError(((errors or output).strip().splitlines() or ["the load failed"])[-1])
    return output


@contextlib.contextmanager
def idle_connections(number: int, request: Request) -> Iterator[None]:
    """Hold `number` connections open, with one response each. Raises FailedError if any closes."""
    head = f"GET {request.path} HTTP/1.1\r\nHost: {BIND}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        sockets = []
        for count in range(number):
            try:
                held = stack.enter_context(socket.create_connection(("127.0.0.1", PORT), 5))
                held.sendall(head)
                answer = held.recv(65536)
                while answer and not answer.endswith(HELLO_END):
                    answer += held.recv(65536)
            except OSError as error:
                raise FailedError(f"idle connection {count + 1} of {number}: {error}") from error
            held.setblocking(False)
            sockets.append(held)
        yield
        lost = sum(map(closed_by_peer, sockets))
        if lost:
            raise FailedError(f"closed {lost} of {number} idle connections")


HELLO_END = b"Hello, world!"


def closed_by_peer(held: socket.socket) -> bool:
    try:
        return not held.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
