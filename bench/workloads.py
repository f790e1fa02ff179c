"""The workloads: the requests, and how the server is started for them.

They come in groups. Each group is measured and recorded separately.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from servers import FLOOR, Setup

CONNECTIONS = 64
Fields = tuple[tuple[str, str], ...]

# A browser's header fields: 12, including Host.
BROWSER: Fields = (
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
)
CLOSE: Fields = (("Connection", "close"),)
# Fields that a TLS-terminating proxy adds to every request; `Request.varies` adds the others.
PROXY: Fields = (
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "example.com"),
    ("Via", "1.1 proxy"),
)
JSON: Fields = (("Content-Type", "application/json"),)

HELLO = b"Hello, world!"
MB = 1 << 20


@dataclass(frozen=True)
class Request:
    """One request and its response.

    answer  the body of the response, or its length in bytes
    varies  "": the same request each time. "varied": 1,000 requests in turn, with different paths,
            queries, cookies and request ids. "proxied": these also differ in the client's address
            (X-Forwarded-For, X-Real-IP). "static": the files of STATIC in turn. See wrk.lua.
    """

    path: str = "/"
    fields: Fields = ()
    body: bytes = b""
    answer: bytes | int = HELLO
    varies: str = ""


@dataclass(frozen=True)
class Workload:
    """`how` names the function of measure.py, and thus the columns of report.py."""

    name: str
    title: str
    kinds: tuple[str, ...] = ("wsgi", "asgi")
    how: str = "closed"
    setup: Setup = field(default_factory=Setup)
    request: Request = field(default_factory=Request)
    connections: int = CONNECTIONS
    # size: bytes of a WebSocket message. streams: concurrent requests of an HTTP/2 connection.
    size: int = 0
    streams: int = 0
    # The client closes a connection after as many requests; 0: it never does.
    per_connection: int = 0
    # Requests that leave together on a connection, by generator.c; 0: one, by wrk.
    pipelined: int = 0
    # Requests/s that a paced workload sends; 0: a rate that every server can serve.
    rate: float = 0


# The files of HttpArena's static profile: name -> bytes.
STATIC = {
    "analytics.js": 12_288,
    "app.js": 204_800,
    "bold.woff2": 22_528,
    "components.css": 204_800,
    "footer.html": 56_320,
    "header.html": 122_880,
    "helpers.js": 22_528,
    "hero.webp": 46_080,
    "icon-sprite.svg": 71_680,
    "layout.css": 25_600,
    "logo.svg": 15_344,
    "manifest.json": 2_883,
    "regular.woff2": 18_432,
    "reset.css": 8_192,
    "router.js": 35_840,
    "theme.css": 18_432,
    "thumb1.webp": 8_192,
    "thumb2.webp": 6_144,
    "utilities.css": 61_440,
    "vendor.js": 307_200,
}


def _json(size: int) -> bytes:
    head, tail = b'{"name": "Ada", "text": "', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


POST = Request("/echo", JSON, _json(1024), _json(1024))
FASTAPI = Request(answer=b'"Hello, world!"')  # JSON
UPLOAD = Request("/upload", (), b"x" * 10_000_000, b"10000000")
BODIES = Setup(app="apps.bodies")
TLS = Setup(tls=True)
ARENA = Setup(app="apps.arena")
# Compact JSON of 50 items and their totals (apps/arena.py).
ITEMS = Request("/json/50?m=1", answer=8_625)
# Of each response, `complete` (measure.py) expects this many bytes. The mean file has 63,580.
FILE = Request("/static/utilities.css", answer=STATIC["utilities.css"], varies="static")
WSGI, ASGI, WEBSOCKET, HTTP2 = ("wsgi",), ("asgi",), ("websocket",), ("http2",)
ALL_AND_FLOOR = ("wsgi", "asgi", FLOOR)


def _logged(app: str) -> Setup:
    return Setup(app=app, access_log=True)


def _proxied(
    name: str, title: str, kinds: tuple[str, ...], answer: bytes | int = HELLO
) -> Workload:
    """The requests of `proxied` for a framework, which routes two numbers of their paths."""
    return Workload(
        f"{name}-proxied",
        f"{title}: requests that differ, through a trusted proxy",
        kinds,
        setup=Setup(f"apps.{name}_hello"),
        request=Request("/shop/1/items/37?page=1&q=a", BROWSER + PROXY, b"", answer, "proxied"),
    )


def _workers(number: int) -> Setup:
    return Setup(workers=number)


GROUPS: dict[str, list[Workload]] = {
    "http": [
        Workload("hello", "hello world: a request with `Host` only"),
        Workload("browser", "a browser's request: 12 header fields", request=Request("/", BROWSER)),
        Workload("post-1k", "POST of 1 KB of JSON, echoed", setup=BODIES, request=POST),
    ],
    "traffic": [
        Workload(
            "varied",
            "a browser's requests, each different: path, query, cookie, id",
            request=Request("/", BROWSER, varies="varied"),
        ),
        Workload(
            "proxied",
            "the same through a trusted proxy, with the fields that it adds",
            request=Request("/", BROWSER + PROXY, varies="proxied"),
        ),
    ],
    "proxy": [
        Workload(
            "nginx-varied",
            "a browser's requests through nginx, which adds a proxy's fields",
            how="behind_nginx",
            request=Request("/", BROWSER, varies="varied"),
        ),
        Workload(
            "nginx-proxied",
            "the same through another proxy before nginx",
            how="behind_nginx",
            request=Request("/", BROWSER + PROXY, varies="proxied"),
        ),
    ],
    "access-log": [
        Workload("hello-log", "hello world, access log on", setup=_logged("apps.hello")),
        Workload(
            "browser-log",
            "a browser's request, access log on",
            setup=_logged("apps.hello"),
            request=Request("/", BROWSER),
        ),
        Workload(
            "post-1k-log", "POST of 1 KB, access log on", setup=_logged("apps.bodies"), request=POST
        ),
        Workload(
            "starlette-log", "Starlette, access log on", ASGI, setup=_logged("apps.starlette_hello")
        ),
        Workload(
            "fastapi-log",
            "FastAPI, access log on",
            ASGI,
            setup=_logged("apps.fastapi_hello"),
            request=FASTAPI,
        ),
    ],
    "connections": [
        Workload(
            "fresh",
            "a fresh connection for each request",
            ALL_AND_FLOOR,
            request=Request("/", CLOSE),
        ),
        Workload(
            "ten-requests",
            "ten requests on each connection, then the client closes it",
            ALL_AND_FLOOR,
            per_connection=10,
        ),
        Workload(
            "idle-1000",
            "hello world beside 1,000 idle connections",
            how="beside_idle",
            setup=Setup(many=True),
        ),
    ],
    "pipelining": [
        Workload("pipelined-1", "hello world, one request at a time", ALL_AND_FLOOR, pipelined=1),
        Workload("pipelined-16", "16 requests at a time", ALL_AND_FLOOR, pipelined=16),
    ],
    # https://github.com/MDA2AV/HttpArena: its requests, on one worker and with our measures.
    "arena": [
        Workload(
            "query-sum",
            "GET, the sum of two numbers of the query",
            setup=ARENA,
            request=Request("/baseline?a=13&b=42", answer=b"55"),
        ),
        Workload(
            "small-post",
            "POST of 2 bytes, the sum of them and the query",
            setup=ARENA,
            request=Request("/baseline?a=13&b=42", body=b"20", answer=b"75"),
        ),
        Workload("orjson", "50 items as JSON, with orjson", setup=ARENA, request=ITEMS),
        Workload("static", "20 files of 3 to 307 KB in turn", setup=ARENA, request=FILE),
        Workload(
            "short-lived",
            "the sum again: ten requests on each connection, then the client closes it",
            setup=ARENA,
            request=Request("/baseline?a=13&b=42", answer=b"55"),
            per_connection=10,
        ),
        Workload(
            "memory-512",
            "the memory while 512 connections ask for the JSON",
            how="memory_under_load",
            setup=Setup(app="apps.arena", many=True),
            request=ITEMS,
            connections=512,
        ),
    ],
    "frameworks": [
        Workload("flask", "Flask", WSGI, setup=Setup("apps.flask_hello")),
        Workload("django", "Django", WSGI, setup=Setup("apps.django_hello")),
        Workload("starlette", "Starlette", ASGI, setup=Setup("apps.starlette_hello")),
        Workload(
            "fastapi",
            "FastAPI",
            ASGI,
            setup=Setup("apps.fastapi_hello"),
            request=FASTAPI,
        ),
    ],
    "proxied-frameworks": [
        _proxied("flask", "Flask", WSGI),
        _proxied("django", "Django", WSGI),
        _proxied("starlette", "Starlette", ASGI),
        _proxied("fastapi", "FastAPI", ASGI, FASTAPI.answer),
    ],
    "bodies": [
        Workload(
            "10k", "a response of 10 KB", setup=BODIES, request=Request("/10k", answer=10_240)
        ),
        Workload(
            "1M",
            "a response of 1 MB",
            setup=BODIES,
            request=Request("/1m", answer=MB),
            connections=16,
        ),
        Workload(
            "stream",
            "a response of 1 MB in 16 pieces",
            setup=BODIES,
            request=Request("/stream", answer=MB),
            connections=16,
        ),
        Workload("upload-10M", "an upload of 10 MB", setup=BODIES, request=UPLOAD, connections=4),
    ],
    "tls": [
        Workload("tls-hello", "hello world over TLS 1.3", ALL_AND_FLOOR, setup=TLS),
        Workload(
            "tls-browser",
            "a browser's request over TLS 1.3",
            setup=TLS,
            request=Request("/", BROWSER),
        ),
        Workload(
            "tls-fresh",
            "a TLS handshake for each request, none resumed",
            ALL_AND_FLOOR,
            setup=TLS,
            request=Request("/", CLOSE),
        ),
        Workload(
            "tls-resumed",
            "4 workers; each connection resumes the session of the one before",
            ALL_AND_FLOOR,
            how="resumed",
            setup=Setup(tls=True, workers=4),
            connections=8,
        ),
    ],
    "websocket": [
        Workload("echo-32", "echo of 32 bytes of text", WEBSOCKET, "echo", size=32),
        Workload("echo-1M", "echo of 1 MB of bytes", WEBSOCKET, "echo", size=MB, connections=4),
    ],
    "http2": [
        Workload("http2-hello", "GET", HTTP2, "http2", connections=8, streams=8),
        Workload(
            "http2-browser",
            "a browser's GET",
            HTTP2,
            "http2",
            connections=8,
            streams=8,
            request=Request("/", BROWSER[1:]),
        ),
        Workload("http2-tls", "GET over TLS", HTTP2, "http2", setup=TLS, connections=8, streams=8),
    ],
    "tail": [
        Workload("paced", "hello world, every server offered the same rate", how="paced"),
        Workload("paced-20k", "hello world, 20,000 requests/s offered", how="paced", rate=20_000),
        Workload(
            "mixed",
            "4 workers; 2 % of the requests block for 0.1 s",
            how="mixed",
            setup=Setup(app="apps.bodies", workers=4),
        ),
    ],
    "lifecycle": [
        Workload("start", "from the start of the process to the first response", how="start_up"),
        Workload(
            "reload",
            "HUP under load, until all of 4 workers are new",
            how="reload",
            setup=Setup(app="apps.bodies", workers=4),
        ),
        Workload("idle", "4 workers without requests", how="idle", setup=_workers(4)),
        Workload("idle-16", "16 workers without requests", how="idle", setup=_workers(16)),
    ],
    "boot": [
        Workload(
            "start-8",
            "from the start of the process until 8 workers have answered",
            how="start_all",
            setup=Setup(app="apps.bodies", workers=8),
        ),
        Workload(
            "start-8-large",
            "the same with Django, numpy and pandas",
            ("memory",),
            how="start_all",
            setup=Setup(app="apps.django_large", workers=8),
        ),
    ],
    "memory": [
        Workload(
            "large-app",
            "Django, numpy and pandas: 4 workers after 10,000 requests",
            ("memory",),
            how="memory",
            setup=Setup(app="apps.django_large", workers=4),
        ),
    ],
    "respawn": [
        Workload(
            "killed-worker",
            "the same app: its only worker is killed",
            ("memory",),
            how="respawn",
            setup=Setup(app="apps.django_large"),
        ),
    ],
    "scaling": [
        Workload("workers-1", "hello world, 1 worker", setup=_workers(1)),
        Workload("workers-2", "hello world, 2 workers on the one core", setup=_workers(2)),
        Workload("workers-4", "hello world, 4 workers on the one core", setup=_workers(4)),
    ],
}

WORKLOADS = {workload.name: workload for group in GROUPS.values() for workload in group}
