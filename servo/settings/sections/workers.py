"""Settings of sockets, workers and timeouts."""

from __future__ import annotations

from servo.settings.gunicorn_compat import WorkerClass
from servo.settings.setting import DefaultFrom, Setting
from servo.settings.types import Directory, Seconds, Size, Switch, TextList, Whole

_SOCKETS = "Sockets"
_WORKERS = "Workers"
_TIMES = "Timeouts"

SETTINGS = [
    Setting(
        name="bind",
        type=TextList(metavar="ADDRESS", valid="a list of addresses"),
        default=["127.0.0.1:8000"],
        default_from=DefaultFrom("PORT", "0.0.0.0:$PORT", lambda port: f"0.0.0.0:{port.strip()}"),
        flags=("-b", "--bind"),
        section=_SOCKETS,
        reloadable=False,
        help="An address to listen on; may be repeated.",
        details="""\
One of `HOST:PORT`, `:PORT`, `[::1]:PORT`, `unix:/path`, `unix:@abstract` and `fd://N`.""",
    ),
    Setting(
        name="backlog",
        type=Whole(1),
        default=2048,
        unit="connections",
        section=_SOCKETS,
        reloadable=False,
        help="How many connections may wait to be accepted on each socket.",
    ),
    Setting(
        name="reuse_port",
        type=Switch(),
        default=False,
        section=_SOCKETS,
        reloadable=False,
        help="Give each worker its own listening socket (SO_REUSEPORT) instead of a shared one.",
        details="""\
The kernel then spreads connections without regard to how busy a worker is; the shared socket is
fairer.""",
    ),
    Setting(
        name="workers",
        type=Whole(1, keywords=("auto",)),
        default=1,
        default_from=DefaultFrom("WEB_CONCURRENCY", "$WEB_CONCURRENCY"),
        flags=("-w", "--workers"),
        unit="processes",
        section=_WORKERS,
        help="The number of worker processes; auto derives it from the usable CPUs.",
        details="""\
`auto` counts the CPUs in the process's affinity mask, limited by the quota of its cgroups. For n
CPUs it starts n workers, or 2n+1 of class `sync`, since such a worker serves one request at a
time.""",
    ),
    Setting(
        name="worker_class",
        type=WorkerClass(),
        default="auto",
        flags=("-k", "--worker-class"),
        section=_WORKERS,
        help="The worker class: auto, sync, thread, async, or the dotted path of a class.",
        details="""\
`auto` means `async` for an ASGI app. For a WSGI app it means `thread` if `threads` is more than 1,
else `sync`. gunicorn's `gthread` means `thread`; its `asgi`, and uvicorn's worker classes, mean
`async`.""",
    ),
    Setting(
        name="threads",
        type=Whole(1),
        default=1,
        unit="threads",
        section=_WORKERS,
        help="Threads in which a worker runs a WSGI app; more than 1 turns sync into thread.",
        details="Unset: 4 for the classes `thread` and `async`.",
    ),
    Setting(
        name="worker_connections",
        type=Whole(1),
        default=1000,
        unit="connections",
        section=_WORKERS,
        help="How many connections a worker holds before it stops accepting new ones.",
    ),
    Setting(
        name="limit_concurrency",
        type=Whole(),
        default=0,
        unit="requests",
        section=_WORKERS,
        help="How many requests a worker serves at a time before it answers 503; 0: no limit.",
    ),
    Setting(
        name="max_requests",
        type=Whole(),
        default=0,
        unit="requests",
        section=_WORKERS,
        help="Replace a worker after this many requests; 0: never.",
        details="The replacement is ready before the old worker stops accepting.",
    ),
    Setting(
        name="max_requests_jitter",
        type=Whole(),
        default=None,
        nullable=True,
        unit="requests",
        section=_WORKERS,
        help="How many requests to add to max_requests at most, at random for each worker.",
        details="""\
Workers then don't all end at the same time. Unset: a tenth of `max_requests`.""",
    ),
    Setting(
        name="max_lifetime",
        type=Seconds(),
        default=0.0,
        unit="seconds",
        section=_WORKERS,
        help="Replace a worker after this time; 0: never.",
    ),
    Setting(
        name="reload_batch",
        type=Whole(1),
        default=1,
        unit="workers",
        section=_WORKERS,
        help="How many workers a reload replaces at a time, once the first new one is ready.",
    ),
    Setting(
        name="worker_tmp_dir",
        type=Directory(),
        default=None,
        nullable=True,
        section=_WORKERS,
        reloadable=False,
        help="A directory for the workers' shared table. Unset: it is kept in memory (memfd).",
    ),
    Setting(
        name="scoreboard_size",
        type=Whole(1),
        default=256,
        unit="rows",
        section=_WORKERS,
        reloadable=False,
        help="Rows of the workers' shared table: the most workers that can run at once.",
        details="""\
A worker and its replacement take one row each. If `workers` needs more rows at the start, the table
gets them.""",
    ),
    Setting(
        name="timeout",
        type=Seconds(),
        default=30.0,
        flags=("-t", "--timeout"),
        unit="seconds",
        section=_TIMES,
        help="End a worker that makes no progress for this time; 0: never.",
        details="""\
The stacks of its threads are logged first. In a `sync` worker this limits each request; in the
other classes it limits how long the event loop or the poller may be blocked.""",
    ),
    Setting(
        name="boot_timeout",
        type=Seconds(),
        default=60.0,
        unit="seconds",
        section=_TIMES,
        help="How long a worker may take to load the app; 0: no limit.",
    ),
    Setting(
        name="hook_timeout",
        type=Seconds(),
        default=30.0,
        unit="seconds",
        section=_TIMES,
        help="How long a hook, or reading the configuration at a reload, may take; 0: no limit.",
        details="""\
While such code runs in the arbiter, the arbiter can't supervise its workers. After this time,
SIGALRM raises an exception in the code, and the log says where. If a signal to stop arrives while
the code runs, the code is interrupted after two seconds.""",
    ),
    Setting(
        name="graceful_timeout",
        type=Seconds(),
        default=30.0,
        unit="seconds",
        section=_TIMES,
        help="How long a stopping worker may take to finish its requests.",
    ),
    Setting(
        name="pre_stop_delay",
        type=Seconds(),
        default=0.0,
        unit="seconds",
        section=_TIMES,
        help="How long the server still serves after /-/ready has begun to fail, before it stops.",
        details="""\
This gives load balancers time to notice. It comes before `graceful_timeout`. A second `TERM` ends
the delay, and `INT` or `QUIT` skip it.""",
    ),
    Setting(
        name="drain_idle",
        type=Seconds(),
        default=5.0,
        unit="seconds",
        section=_TIMES,
        help="How long a stopping worker keeps idle connections open.",
    ),
    Setting(
        name="request_timeout",
        type=Seconds(),
        default=0.0,
        unit="seconds",
        section=_TIMES,
        help="How long the app may take for one request; 0: no limit.",
    ),
    Setting(
        name="keepalive",
        type=Seconds(),
        default=None,
        nullable=True,
        flags=("--keep-alive",),
        unit="seconds",
        section=_TIMES,
        help="How long an idle connection is kept open; 0 closes it after each response.",
        details="""\
Unset: 75, which is more than the usual 60 of load balancers, so that they close first.

Unset, and with more than one worker of class `sync` or `async`, a busy worker closes connections
after each response for the next 30 s. On a kept connection, a request would have to wait for the
busy worker while other workers are idle. A worker counts as busy if its requests block it for more
than 1 ms each on average (5 ms over TLS) and for more than 5 % of the time. The requests of an
`async` worker block it while a handler blocks the event loop.""",
    ),
    Setting(
        name="header_timeout",
        type=Seconds(),
        default=30.0,
        unit="seconds",
        section=_TIMES,
        help="How long a request's head may take to arrive; 0: no limit.",
    ),
    Setting(
        name="body_timeout",
        type=Seconds(),
        default=30.0,
        unit="seconds",
        section=_TIMES,
        help="The longest pause within a request's body; 0: no limit.",
    ),
    Setting(
        name="body_min_rate",
        type=Size(),
        default=240,
        unit="bytes a second",
        section=_TIMES,
        help="The lowest average rate of a request's body; 0: no limit.",
        details="""\
The rate counts once `body_timeout` has passed. Time in which the server waits for the app doesn't
count. The default is that of Kestrel.""",
    ),
    Setting(
        name="send_timeout",
        type=Seconds(),
        default=60.0,
        unit="seconds",
        section=_TIMES,
        help="How long a client may go without reading any of a response; 0: no limit.",
    ),
]
