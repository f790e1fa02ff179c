"""Servo's aims: the CPU time of a request as a ratio to each peer, and limits without a peer."""

from __future__ import annotations

from typing import NamedTuple

_WSGI = (("hello",), ("browser",), ("post-1k",), ("flask", "django"))
_ASGI = (("hello",), ("browser",), ("post-1k",), ("starlette", "fastapi"))
_LOGGED = (("hello-log",), ("browser-log",), ("post-1k-log",), ("starlette-log", "fastapi-log"))

_BODIES = (("1M",), ("stream",), ("upload-10M",))
_TLS = (("tls-hello",), ("tls-browser",), ("tls-fresh",))
_ECHO = (("echo-32",), ("echo-1M",))
_HTTP2 = (("http2-hello",), ("http2-browser",), ("http2-tls",))
_TRAFFIC = (("varied",), ("proxied",))
_PROXIED_WSGI = (("flask-proxied", "django-proxied"),)
_PROXIED_ASGI = (("starlette-proxied", "fastapi-proxied"),)
_FRESH = (("fresh",),)
_TEN = (("ten-requests", "short-lived"),)
_FULL_TLS = (("tls-fresh",),)
_PIPELINED = (("pipelined-16",),)
# "At least level" with a peer. Figures of one machine vary by more than this tenth.
_LEVEL = (1.1,)

# (Servo, peer, workloads of each column, aim of each column); the best Python peers come last.
GOALS = [
    ("servo-sync", "granian-wsgi", _WSGI, (0.85, 0.85, 0.9, 1)),
    ("servo-thread", "granian-wsgi", _WSGI, (1, 1, 1, 1)),
    ("servo-sync", "fastpysgi-wsgi", _WSGI, (0.95, 0.95, 0.95, 1.2)),
    ("servo-sync", "gunicorn-sync", _WSGI, (0.12, 0.2, 0.25, 0.5)),
    ("servo-thread", "gunicorn-gthread", _WSGI, (0.2, 0.2, 0.25, 0.5)),
    ("servo-async", "granian-asgi", _ASGI, (0.75, 0.8, 0.85, 1)),
    ("servo-async", "uvicorn", _ASGI, (0.6, 0.6, 0.7, 0.9)),
    ("servo-async", "uvicorn", _LOGGED, (0.4, 0.45, 0.5, 0.75)),
    ("servo-async", "fastpysgi-asgi", _ASGI, (0.7, 0.7, 0.7, 1)),
    ("servo-sync", "gunicorn-gthread", _BODIES, 3 * _LEVEL),
    ("servo-async", "gunicorn-asgi", _BODIES, 3 * _LEVEL),
    ("servo-async", "uvicorn", _BODIES, 3 * _LEVEL),
    ("servo-async", "uvicorn", _TLS, 3 * _LEVEL),
    ("servo-sync", "granian-wsgi", _PROXIED_WSGI, (1,)),
    ("servo-sync", "fastpysgi-wsgi", _PROXIED_WSGI, (1,)),
    ("servo-thread", "granian-wsgi", _PROXIED_WSGI, (1,)),
    ("servo-thread", "gunicorn-gthread", _PROXIED_WSGI, (1,)),
    ("servo-async", "granian-asgi", _PROXIED_ASGI, (1,)),
    ("servo-async", "uvicorn", _PROXIED_ASGI, (1,)),
    ("servo-async", "fastpysgi-asgi", _PROXIED_ASGI, (1,)),
    ("servo-sync", "granian-wsgi", (("tls-hello",),), (1,)),
    # Without Python, with the same OpenSSL: what a handshake costs in any case.
    ("servo-sync", "nginx", _FULL_TLS, _LEVEL),
    ("servo-thread", "nginx", _FULL_TLS, _LEVEL),
    ("servo-async", "nginx", _FULL_TLS, _LEVEL),
    ("servo-async", "uvicorn", _FRESH, (0.95,)),
    ("servo-async", "granian-asgi", _FRESH, (1.4,)),
    ("servo-sync", "fastpysgi-wsgi", _FRESH, (1,)),
    ("servo-thread", "fastpysgi-wsgi", _FRESH, (1.2,)),
    ("servo-sync", "granian-wsgi", _TEN, (1,)),
    ("servo-sync", "gunicorn-sync", _TEN, (1,)),
    ("servo-thread", "granian-wsgi", _TEN, (1,)),
    ("servo-thread", "gunicorn-gthread", _TEN, (1,)),
    ("servo-async", "granian-asgi", _TEN, (1,)),
    ("servo-async", "uvicorn", _TEN, (1,)),
    ("servo-async", "gunicorn-asgi", _TEN, (1,)),
    ("servo-sync", "granian-wsgi", _PIPELINED, (1,)),
    ("servo-thread", "granian-wsgi", _PIPELINED, (1,)),
    ("servo-async", "granian-asgi", _PIPELINED, (1,)),
    ("servo-async", "uvicorn", _PIPELINED, (1,)),
    ("servo-websocket", "uvicorn-sansio", _ECHO, 2 * _LEVEL),
    ("servo-http2", "granian-http2", _HTTP2, (1.5, 1.5, 1.5)),
    ("servo-http2", "hypercorn-http2", _HTTP2, (0.25, 0.25, 0.25)),
    ("servo-sync", "granian-wsgi", _TRAFFIC, (0.85, 0.9)),
    ("servo-thread", "granian-wsgi", _TRAFFIC, (1, 1)),
    ("servo-async", "granian-asgi", _TRAFFIC, (0.75, 0.8)),
    ("servo-async", "uvicorn", _TRAFFIC, (0.6, 0.6)),
    # The memory of 4 workers, not CPU time.
    ("servo-memory-preload", "servo-memory", (("large-app",),), (0.45,)),
    ("servo-memory-preload", "gunicorn-memory-preload", (("large-app",),), (0.6,)),
]


class Own(NamedTuple):
    """An aim for each of Servo's servers.

    figure  (workload, figure) that the aim is about
    over    (workload, figure) to divide it by; None: by nothing
    most    the greatest value that meets the aim, in the unit of the figure
    only    the one of Servo's servers that the aim is for; "": all
    """

    title: str
    figure: tuple[str, str]
    over: tuple[str, str] | None
    most: float
    only: str = ""


OWN = [
    Own("CPU a request, 2 workers / 1", ("workers-2", "cpu_us"), ("workers-1", "cpu_us"), 1.1),
    Own("CPU a request, 4 workers / 1", ("workers-4", "cpu_us"), ("workers-1", "cpu_us"), 1.1),
    # Twice as many requests in the same time.
    Own(
        "CPU a request, 16 pipelined / 1",
        ("pipelined-16", "cpu_us"),
        ("pipelined-1", "cpu_us"),
        0.5,
    ),
    Own("TLS, 4 workers: handshakes not resumed, %", ("tls-resumed", "full_percent"), None, 1),
    Own("mixed, p90 / without slow ones", ("mixed", "p90_ms"), ("mixed", "p90_alone_ms"), 1.5),
    Own("start over the app's import, ms", ("start", "start_ms"), None, 150),
    # A thousandth of a core for all five processes: `top` shows this as 0.
    Own("4 idle workers, CPU ms/s", ("idle", "idle_cpu_ms"), None, 1),
    Own(
        "SIGKILL to the successor's answer, ms",
        ("killed-worker", "successor_ms"),
        None,
        50,
        "servo-memory-preload",
    ),
]


def goals() -> dict[tuple[str, str, str], float]:
    """(workload, Servo's name, the peer's name) -> the greatest ratio that meets the aim."""
    return {
        (workload, servo, peer): aim
        for servo, peer, columns, aims in GOALS
        for names, aim in zip(columns, aims, strict=True)
        for workload in names
    }
