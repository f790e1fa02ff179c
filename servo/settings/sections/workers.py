"""Sockets, workers and how long everything may take."""

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
        help="Where to listen; may be repeated.",
        details="`HOST:PORT`, `:PORT`, `[::1]:PORT`, `unix:/path`, `unix:@abstract`, `fd://N`.",
    ),
    Setting(
        name="backlog",
        type=Whole(1),
        default=2048,
        unit="connections",
        section=_SOCKETS,
        reloadable=False,
        help="How many connections may wait to be accepted, per socket.",
    ),
    Setting(
        name="reuse_port",
        type=Switch(),
        default=False,
        section=_SOCKETS,
        reloadable=False,
        help="A listener for each worker (SO_REUSEPORT) instead of a shared one.",
        details="The kernel then spreads connections blindly; the shared listener is fairer.",
    ),
    Setting(
        name="workers",
        type=Whole(1, words=("auto",)),
        default=1,
        default_from=DefaultFrom("WEB_CONCURRENCY", "$WEB_CONCURRENCY"),
        flags=("-w", "--workers"),
        unit="processes",
        section=_WORKERS,
        help="How many worker processes; auto goes by the CPUs that may be used.",
        details="""\
`auto` counts the CPUs of the process's affinity, bounded by the quota of its cgroups: n workers, or
2n+1 of the `sync` class, in which a worker serves one request at a time.""",
    ),
    Setting(
        name="worker_class",
        type=WorkerClass(),
        default="auto",
        flags=("-k", "--worker-class"),
        section=_WORKERS,
        help="auto, sync, thread, async, or the dotted path of a class.",
        details="""\
`auto` is `async` for an ASGI app; for a WSGI app `thread` when `threads` is more than 1, else
`sync`. gunicorn's `gthread` means `thread`; its `asgi`, and uvicorn's worker classes, mean
`async`.""",
    ),
    Setting(
        name="threads",
        type=Whole(1),
        default=1,
        unit="threads",
        section=_WORKERS,
        help="Threads of a worker that run a WSGI app; more than 1 makes sync thread.",
        details="Unset, a `thread` worker has 4.",
    ),
    Setting(
        name="worker_connections",
        type=Whole(1),
        default=1000,
        unit="connections",
        section=_WORKERS,
        help="Connections that a worker holds before it stops accepting.",
    ),
    Setting(
        name="limit_concurrency",
        type=Whole(),
        default=0,
        unit="requests",
        section=_WORKERS,
        help="Requests in flight in a worker past which the answer is 503; 0: no limit.",
    ),
    Setting(
        name="max_requests",
        type=Whole(),
        default=0,
        unit="requests",
        section=_WORKERS,
        help="Replace a worker after so many requests; 0: never.",
        details="The replacement is ready before the old worker stops accepting.",
    ),
    Setting(
        name="max_requests_jitter",
        type=Whole(),
        default=None,
        nullable=True,
        unit="requests",
        section=_WORKERS,
        help="Up to so many more, at random, so that workers don't end together.",
        details="Unset: a tenth of `max_requests`.",
    ),
    Setting(
        name="max_lifetime",
        type=Seconds(),
        default=0.0,
        unit="seconds",
        section=_WORKERS,
        help="Replace a worker after so long; 0: never.",
    ),
    Setting(
        name="reload_batch",
        type=Whole(1),
        default=1,
        unit="workers",
        section=_WORKERS,
        help="How many workers a reload replaces at a time, after the first.",
    ),
    Setting(
        name="worker_tmp_dir",
        type=Directory(),
        default=None,
        nullable=True,
        section=_WORKERS,
        reloadable=False,
        help="Where the workers' shared table lies, if not in memory (memfd).",
    ),
    Setting(
        name="scoreboard_size",
        type=Whole(1),
        default=256,
        unit="rows",
        section=_WORKERS,
        reloadable=False,
        help="Rows of the workers' shared table: how many can ever run at once.",
        details="A worker and its replacement take a row each. It grows to what `workers` needs.",
    ),
    Setting(
        name="timeout",
        type=Seconds(),
        default=30.0,
        flags=("-t", "--timeout"),
        unit="seconds",
        section=_TIMES,
        help="End a worker that makes no progress for so long; 0: never.",
        details="""\
Its stacks go to the log first. It bounds a request in a `sync` worker, and how long the loop or the
poller may stand still in the others.""",
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
While such code runs in the arbiter, nobody looks after the workers. After this time it is
interrupted, by an exception that SIGALRM raises in it, and the log says where. When a signal to
stop comes meanwhile, it is interrupted after two seconds.""",
    ),
    Setting(
        name="graceful_timeout",
        type=Seconds(),
        default=30.0,
        unit="seconds",
        section=_TIMES,
        help="How long a worker that is to end may go on answering what it has.",
    ),
    Setting(
        name="pre_stop_delay",
        type=Seconds(),
        default=0.0,
        unit="seconds",
        section=_TIMES,
        help="How long a stop waits, serving on, after readiness (/-/ready) has failed.",
        details="""\
Time for load balancers to notice. It comes before `graceful_timeout`; a second `TERM` cuts it
short, and `INT` or `QUIT` leave it out.""",
    ),
    Setting(
        name="drain_idle",
        type=Seconds(),
        default=5.0,
        unit="seconds",
        section=_TIMES,
        help="How long such a worker waits on an idle kept-alive connection.",
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
        help="How long an idle connection is kept; 0 closes after each response.",
        details="""\
Unset: 75, above the usual load balancer's 60; but of several `sync` or `async` workers one that was
just held up by its requests closes after each response, for 30 s: a request on a kept connection
would wait for its busy worker while others idle. Held up: for more than 1 ms for each request (5 ms
over TLS), and 5 % of the time; an `async` worker by handlers that block its event loop.""",
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
        help="How long a request's body may pause; 0: no limit.",
    ),
    Setting(
        name="body_min_rate",
        type=Size(),
        default=240,
        unit="bytes a second",
        section=_TIMES,
        help="What a request's body must bring on average; 0: no matter how little.",
        details="""\
Asked for once `body_timeout` has passed, and not while the application is the one that is slow.
240 is what Kestrel asks for.""",
    ),
    Setting(
        name="send_timeout",
        type=Seconds(),
        default=60.0,
        unit="seconds",
        section=_TIMES,
        help="How long a client may take nothing of a response; 0: no limit.",
    ),
]
