"""HTTP: what clients may send, what is said to them, and which proxies are believed."""

from __future__ import annotations

from servo.http.forwarded import DEFAULT_FIELDS, FIELDS
from servo.settings.setting import DefaultFrom, Setting
from servo.settings.types import (
    Choice,
    Directory,
    Size,
    Switch,
    Table,
    Text,
    TextList,
    Whole,
    network,
)

_HTTP = "HTTP"
_LIMITS = "Limits"
_PROXIES = "Proxies"
_NETWORKS = "addresses and networks such as 10.0.0.0/8 (no host bits set), or *"


def _forwarded_field(text: str) -> str:
    """One of the things that a trusted proxy may be believed about."""
    word = text.strip().lower()
    if word not in FIELDS:
        raise ValueError(f"not one of {', '.join(FIELDS)}")
    return word


SETTINGS = [
    Setting(
        name="http_parser",
        type=Choice(
            ("httptools", "h11"), {"auto": "httptools", "fast": "httptools", "python": "h11"}
        ),
        default="httptools",
        section=_HTTP,
        help="Which parser reads HTTP/1.1: in C (httptools), or in Python (h11).",
        details="Both obey the same rules.",
    ),
    Setting(
        name="server_header",
        type=Text(),
        default="servo",
        no_flag=("--no-server-header", ""),
        section=_HTTP,
        help="The Server field of responses; empty: none.",
    ),
    Setting(
        name="date_header",
        type=Switch(),
        default=True,
        section=_HTTP,
        help="Send a Date field with responses.",
    ),
    Setting(
        name="sendfile",
        type=Switch(),
        default=True,
        default_from=DefaultFrom("SENDFILE", "$SENDFILE"),
        section=_HTTP,
        help="Send files by sendfile(2).",
    ),
    Setting(
        name="keepalive_requests",
        type=Whole(),
        default=0,
        unit="requests",
        section=_HTTP,
        help="Close a connection after so many requests; 0: no limit.",
    ),
    Setting(
        name="body_buffer_size",
        type=Size(),
        default=1 << 20,
        unit="bytes",
        section=_HTTP,
        help="How much of a body is kept in memory; the rest goes to disk.",
    ),
    Setting(
        name="response_buffer_size",
        type=Size(),
        default=1 << 20,
        unit="bytes",
        section=_HTTP,
        help="How much of a response waits in memory for its client; the rest goes to disk.",
        details="""\
Under WSGI, in `sync` and `thread` workers, so that a client that reads slowly holds no thread. All
clients of a worker may take 64 times as much. 1 MiB is what waitress keeps.""",
    ),
    Setting(
        name="response_spool_limit",
        type=Size(),
        default=1 << 30,
        unit="bytes",
        section=_HTTP,
        help="How much of a worker's responses waits on disk; past it the app waits.",
        details="""\
In `tmp_upload_dir`. One response takes at most as much as it leaves to the others; 0: none, the app
waits as soon as memory is full. nginx allows 1 GiB for each response.""",
    ),
    Setting(
        name="tmp_upload_dir",
        type=Directory(),
        default=None,
        nullable=True,
        section=_HTTP,
        help="Where bodies of requests and responses go that are too big for memory.",
        details="Unset: the system's directory for temporary files.",
    ),
    Setting(
        name="header_map",
        type=Choice(("drop", "refuse", "dangerous")),
        default="drop",
        section=_HTTP,
        help="What becomes of underscores in header names under WSGI.",
        details="""\
In an environ they can't be told from dashes: `drop` the field, `refuse` the request, or keep it
(`dangerous`). `refuse` holds for ASGI apps too; else they get such fields as they are.""",
    ),
    Setting(
        name="strict_targets",
        type=Switch(),
        default=False,
        section=_HTTP,
        help="Refuse a quote, < or > in a query with 400, as RFC 3986 has it.",
        details="""\
Scripts send `?filter={"a":1}` unescaped, so by default it is served. In a path these characters are
always refused, and `#` everywhere.""",
    ),
    Setting(
        name="limit_request_line",
        type=Size(),
        default=8190,
        unit="bytes",
        section=_LIMITS,
        help="The request line; 0: no limit.",
    ),
    Setting(
        name="limit_request_fields",
        type=Whole(),
        default=100,
        unit="fields",
        section=_LIMITS,
        help="Header fields of a request; 0: no limit.",
    ),
    Setting(
        name="limit_request_field_size",
        type=Size(),
        default=8190,
        flags=("--limit-request-field-size", "--limit-request-field_size"),
        unit="bytes",
        section=_LIMITS,
        help="One header field; 0: no limit.",
    ),
    Setting(
        name="limit_request_head_size",
        type=Size(),
        default=65536,
        unit="bytes",
        section=_LIMITS,
        help="All header fields together; 0: no limit.",
    ),
    Setting(
        name="limit_request_body",
        type=Size(),
        default=0,
        unit="bytes",
        section=_LIMITS,
        help="A request's body; 0: no limit.",
    ),
    Setting(
        name="limit_request_trailers",
        type=Whole(),
        default=32,
        unit="fields",
        section=_LIMITS,
        help="Trailer fields of a request; 0: none.",
    ),
    Setting(
        name="limit_chunk_extension",
        type=Size(),
        default=1024,
        unit="bytes",
        section=_LIMITS,
        help="The extensions of one chunk; 0: none.",
    ),
    Setting(
        name="limit_pipeline",
        type=Whole(1),
        default=16,
        unit="requests",
        section=_LIMITS,
        help="Requests read ahead on a connection; reading pauses past it.",
    ),
    Setting(
        name="forwarded_allow_ips",
        type=TextList(metavar="NETWORK,…", valid=_NETWORKS, commas=True, item=network),
        default=["127.0.0.1", "::1"],
        default_from=DefaultFrom("FORWARDED_ALLOW_IPS", "$FORWARDED_ALLOW_IPS"),
        section=_PROXIES,
        help="Whose Forwarded and X-Forwarded fields count; *: everybody's.",
        details="""\
A Unix socket's peer counts as long as the default stands, or `unix` or `*` is listed. What is
believed is `forwarded_fields`.""",
    ),
    Setting(
        name="forwarded_fields",
        type=TextList(
            metavar="FIELD,…", valid=", ".join(FIELDS), commas=True, item=_forwarded_field
        ),
        default=list(DEFAULT_FIELDS),
        section=_PROXIES,
        help="What a trusted proxy is believed about: for, proto, host, prefix.",
        details="""\
`for` is the client's address (X-Forwarded-For, Forwarded), `proto` the scheme
(`secure_scheme_headers`, Forwarded), `host` replaces Host (X-Forwarded-Host, Forwarded), `prefix`
becomes SCRIPT_NAME or `root_path` (X-Forwarded-Prefix). Add `host` and `prefix` only if the proxy
sets these fields itself: one that passes them on lets each client choose them, and the links that
the app builds. Empty: nothing is believed.""",
    ),
    Setting(
        name="proxy_protocol",
        type=Choice(
            ("off", "auto", "v1", "v2"),
            {"true": "auto", "false": "off", "none": "off", "0": "off", "1": "auto"},
        ),
        default="off",
        bare="auto",
        section=_PROXIES,
        help="Expect the PROXY protocol at the start of each connection: v1, v2, or either.",
        details="""\
Once it is on, each connection must begin with the header, and come from `proxy_allow_ips`: others
are refused. The client that it names takes the peer's place, also for `forwarded_allow_ips`.""",
    ),
    Setting(
        name="proxy_allow_ips",
        type=TextList(metavar="NETWORK,…", valid=_NETWORKS, commas=True, item=network),
        default=["127.0.0.1", "::1"],
        flags=("--proxy-allow-from",),
        section=_PROXIES,
        help="Who may speak the PROXY protocol; *: everybody.",
        details="""\
A Unix socket's peer counts as long as the default stands, or `unix` or `*` is listed.""",
    ),
    Setting(
        name="secure_scheme_headers",
        type=Table(of_text=True),
        default={
            "X-FORWARDED-PROTOCOL": "ssl",
            "X-FORWARDED-PROTO": "https",
            "X-FORWARDED-SSL": "on",
        },
        section=_PROXIES,
        help="Fields, and their values, by which a trusted proxy says https.",
    ),
]
