"""Settings of HTTP: parsing, responses, limits on requests, and trusted proxies."""

from __future__ import annotations

import re

from servo.http.forwarded import DEFAULT_FIELDS, FIELDS
from servo.http.h1.field_lines import TOKEN
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


# Fields with which the server frames messages, and those that have settings of their own.
_SERVERS_OWN = frozenset(
    """
    connection content-length date keep-alive proxy-authenticate proxy-authorization
    proxy-connection server te trailer transfer-encoding upgrade
    """.split()  # noqa: SIM905  easier to read in lines
)
_VALUE = re.compile(r"[\t -~\x80-\xff]*")


def _response_field(text: str) -> str:
    """Check an entry of `response_headers` and return it as the line of a head."""
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not name.isascii() or not TOKEN.fullmatch(name.encode()):
        raise ValueError("not NAME: VALUE")
    if name.lower() in _SERVERS_OWN or not _VALUE.fullmatch(value):
        raise ValueError("a field of the server's own, or a value with control characters")
    return f"{name}: {value}"


def _forwarded_field(text: str) -> str:
    """Check an entry of `forwarded_fields` and return it in lower case."""
    field = text.strip().lower()
    if field not in FIELDS:
        raise ValueError(f"not one of {', '.join(FIELDS)}")
    return field


SETTINGS = [
    Setting(
        name="http_parser",
        type=Choice(
            ("httptools", "h11"), {"auto": "httptools", "fast": "httptools", "python": "h11"}
        ),
        default="httptools",
        section=_HTTP,
        help="The HTTP/1.1 parser: httptools (written in C) or h11 (in Python).",
        details="Both enforce the same rules.",
    ),
    Setting(
        name="server_header",
        type=Text(),
        default="servo",
        no_flag=("--no-server-header", ""),
        section=_HTTP,
        help="The Server field of responses; empty: no such field.",
    ),
    Setting(
        name="date_header",
        type=Switch(),
        default=True,
        section=_HTTP,
        help="Send a Date field with responses.",
    ),
    Setting(
        name="response_headers",
        type=TextList(
            metavar="NAME:VALUE",
            valid="a list of fields such as X-Frame-Options: DENY",
            item=_response_field,
        ),
        default=[],
        flags=("--header",),
        section=_HTTP,
        help="A field to add to each response; may be repeated.",
        details="""\
The field is added even if the app sends one of the same name, as in uvicorn, and also to the
server's own responses, such as 400 and 503. Fields that frame messages (`Content-Length`,
`Connection`, …) are errors. For `Server` and `Date` there are `server_header` and
`date_header`.""",
    ),
    Setting(
        name="sendfile",
        type=Switch(),
        default=True,
        default_from=DefaultFrom("SENDFILE", "$SENDFILE"),
        section=_HTTP,
        help="Send files with sendfile(2).",
    ),
    Setting(
        name="keepalive_requests",
        type=Whole(),
        default=0,
        unit="requests",
        section=_HTTP,
        help="Close a connection after this many requests; 0: no limit.",
    ),
    Setting(
        name="body_buffer_size",
        type=Size(),
        default=1 << 20,
        unit="bytes",
        section=_HTTP,
        help="How much of a request's body is kept in memory; the rest goes to disk.",
    ),
    Setting(
        name="response_buffer_size",
        type=Size(),
        default=1 << 20,
        unit="bytes",
        section=_HTTP,
        help="How much of a response waits in memory for its client; the rest goes to disk.",
        details="""\
For WSGI apps in `sync` and `thread` workers: a client that reads slowly doesn't block a thread. All
responses of a worker together may use 64 times as much. The default is that of waitress.""",
    ),
    Setting(
        name="response_spool_limit",
        type=Size(),
        default=1 << 30,
        unit="bytes",
        section=_HTTP,
        help="How much of a worker's responses may wait on disk; beyond it, the app waits.",
        details="""\
The files are in `tmp_upload_dir`. One response may use at most half of the space that the others
leave free. With 0, nothing is put on disk, and the app waits as soon as `response_buffer_size` is
full. nginx allows 1 GiB for each response.""",
    ),
    Setting(
        name="tmp_upload_dir",
        type=Directory(),
        default=None,
        nullable=True,
        section=_HTTP,
        help="Where bodies of requests and responses too big for memory are stored.",
        details="Unset: the system's directory for temporary files.",
    ),
    Setting(
        name="header_map",
        type=Choice(("drop", "refuse", "dangerous")),
        default="drop",
        section=_HTTP,
        help="How to treat header fields with an underscore in their name under WSGI.",
        details="""\
In a WSGI environ, an underscore can't be told apart from a dash. `drop` removes the field, `refuse`
answers the request with 400, and `dangerous` keeps the field. `refuse` applies to ASGI apps, too;
otherwise they get such fields unchanged.""",
    ),
    Setting(
        name="strict_targets",
        type=Switch(),
        default=False,
        section=_HTTP,
        help="Answer 400 to a quote, < or > in a query: RFC 3986 forbids them.",
        details="""\
The default accepts them, because scripts send `?filter={"a":1}` unescaped. These characters are
always refused in a path, and `#` is refused everywhere.""",
    ),
    Setting(
        name="limit_request_line",
        type=Size(),
        default=8190,
        unit="bytes",
        section=_LIMITS,
        help="The longest request line; 0: no limit.",
    ),
    Setting(
        name="limit_request_fields",
        type=Whole(),
        default=100,
        unit="fields",
        section=_LIMITS,
        help="The most header fields in a request; 0: no limit.",
    ),
    Setting(
        name="limit_request_field_size",
        type=Size(),
        default=8190,
        flags=("--limit-request-field-size", "--limit-request-field_size"),
        unit="bytes",
        section=_LIMITS,
        help="The longest header field; 0: no limit.",
    ),
    Setting(
        name="limit_request_head_size",
        type=Size(),
        default=65536,
        unit="bytes",
        section=_LIMITS,
        help="The greatest size of all header fields together; 0: no limit.",
    ),
    Setting(
        name="limit_request_body",
        type=Size(),
        default=0,
        unit="bytes",
        section=_LIMITS,
        help="The longest request body; 0: no limit.",
    ),
    Setting(
        name="limit_request_trailers",
        type=Whole(),
        default=32,
        unit="fields",
        section=_LIMITS,
        help="The most trailer fields in a request; 0: none are allowed.",
    ),
    Setting(
        name="limit_chunk_extension",
        type=Size(),
        default=1024,
        unit="bytes",
        section=_LIMITS,
        help="The longest extensions of one chunk; 0: none are allowed.",
    ),
    Setting(
        name="limit_pipeline",
        type=Whole(1),
        default=16,
        unit="requests",
        section=_LIMITS,
        help="How many requests may wait on one connection before reading pauses.",
    ),
    Setting(
        name="forwarded_allow_ips",
        type=TextList(metavar="NETWORK,…", valid=_NETWORKS, commas=True, item=network),
        default=["127.0.0.1", "::1"],
        default_from=DefaultFrom("FORWARDED_ALLOW_IPS", "$FORWARDED_ALLOW_IPS"),
        section=_PROXIES,
        help="Peers whose Forwarded and X-Forwarded fields are trusted; *: all peers.",
        details="""\
Peers on a Unix socket are trusted if this setting has its default, or if it lists `unix` or `*`.
`forwarded_fields` says which fields are trusted.""",
    ),
    Setting(
        name="forwarded_fields",
        type=TextList(
            metavar="FIELD,…", valid=", ".join(FIELDS), commas=True, item=_forwarded_field
        ),
        default=list(DEFAULT_FIELDS),
        section=_PROXIES,
        help="The claims that are accepted from a trusted proxy: for, proto, host, prefix.",
        details="""\
`for` is the client's address (X-Forwarded-For, Forwarded), `proto` the scheme
(`secure_scheme_headers`, Forwarded). `host` replaces Host (X-Forwarded-Host, Forwarded), and
`prefix` becomes SCRIPT_NAME or `root_path` (X-Forwarded-Prefix). Add `host` and `prefix` only if
the proxy sets these fields itself. If it passes on the client's fields, any client can choose their
values, and so the links that the app builds. Empty: no field is trusted.""",
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
        help="Expect a PROXY protocol header on each connection: v1, v2, or either (auto).",
        details="""\
When this is on, a connection must begin with the header and come from `proxy_allow_ips`; all others
are refused. The address in the header then counts as the peer's address, also for
`forwarded_allow_ips`.""",
    ),
    Setting(
        name="proxy_allow_ips",
        type=TextList(metavar="NETWORK,…", valid=_NETWORKS, commas=True, item=network),
        default=["127.0.0.1", "::1"],
        flags=("--proxy-allow-from",),
        section=_PROXIES,
        help="Peers that may send a PROXY protocol header; *: all peers.",
        details="""\
Peers on a Unix socket may send one if this setting has its default, or if it lists `unix` or
`*`.""",
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
        help="The fields and values by which a trusted proxy says that its client used https.",
    ),
]
