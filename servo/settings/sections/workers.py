"""Settings of sockets, workers and timeouts."""

from __future__ import annotations

from servo.settings.gunicorn_compat import WorkerClass
from servo.settings.setting import DefaultFrom, Setting
from servo.settings.types import (
    Directory,
    Memory,
    PathOrFunction,
    Seconds,
    Size,
    Switch,
    TextList,
    Whole,
    WorkerCount,
)

_SOCKETS = "Sockets"
_WORKERS = "Workers"
_TIMES = "Timeouts"

# A worker needs 10 MB at least. With one digit too many, such as in `-w 40000`, the server would
# fork until the machine stands still.
_MOST_WORKERS = 4096
# Room for that many workers, their replacements and lingering workers. A row has 2 KB.
_MOST_ROWS = 4 * _MOST_WORKERS
# 100,000 counters take 25 MB, and 0.8 MB in each process.
_MOST_COUNTERS = 100_000

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
The kernel then spreads connections without looking at how busy the workers are. With the shared
socket, less busy workers get more connections.""",
    ),
    Setting(
        name="workers",
        type=WorkerCount(1, keywords=("auto",), maximum=_MOST_WORKERS),
        default=1,
        default_from=DefaultFrom("WEB_CONCURRENCY", "$WEB_CONCURRENCY"),
        flags=("-w", "--workers"),
        unit="processes",
        section=_WORKERS,
        help="The number of worker processes; auto: by the CPUs; MIN:MAX: by the load.",
        details="""\
`auto` counts the CPUs in the process's affinity mask, limited by the quota of its cgroups. For n
CPUs it starts n workers, or 2n+1 of class `sync`, since such a worker serves one request at a
time.

`MIN:MAX` (`2:16`) [scales by load](../how-to/autoscale.md): more workers at once, and fewer after
`scale_down_delay`. It starts MIN workers.""",
    ),
    Setting(
        name="scale_down_delay",
        type=Seconds(1.0),
        default=60.0,
        unit="seconds",
        section=_WORKERS,
        help="With workers = MIN:MAX: how long fewer workers must be enough before one ends.",
        details="""\
After that, one worker ends in each tenth of this time, the least busy one first.""",
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
So not all workers end at the same time. Unset: a tenth of `max_requests`.""",
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
        name="max_worker_memory",
        type=Memory(),
        default=0,
        section=_WORKERS,
        help="Replace a worker that uses more memory than this (512M, 25%); 0: no limit.",
        details="""\
The memory is the PSS: pages that several processes share are divided among them. A percentage is of
the memory limit of the server's cgroup or, if there is none, of the machine's memory.

The replacement is ready before the old worker stops accepting. One worker is replaced at a time.
The limit is a little lower for some workers, so that they don't all reach it at the same time: the
growth that the limit allows after boot is reduced by up to 10 %. If a worker exceeds the limit as
soon as it is ready, it is not replaced for its memory, and the log says which limit would work.""",
    ),
    Setting(
        name="max_worker_memory_hard",
        type=Memory(),
        default=0,
        section=_WORKERS,
        help="Kill a worker that uses more memory than this (2G, 50%); 0: no limit.",
        details="""\
For a worker that grows too fast for `max_worker_memory`. Each worker is measured once a second. The
stacks of its threads are logged before it is killed; its open requests are lost. The memory is
measured as for `max_worker_memory`, and here, too, a limit below a worker's size after boot has no
effect.""",
    ),
    Setting(
        name="reload_batch",
        type=Whole(1, maximum=_MOST_WORKERS),
        default=1,
        unit="workers",
        section=_WORKERS,
        help="How many workers a reload replaces at a time, once the first new one is ready.",
    ),
    Setting(
        name="max_boot_failures",
        type=Whole(),
        default=0,
        unit="attempts",
        section=_WORKERS,
        help="End the server if no worker is ready and this many boots in a row failed; 0: never.",
        details="""\
For orchestrators, which restart or move a server that has ended; the exit code is 3 or 4. Workers
that fail together count as one failed boot, and a worker that gets ready resets the count. With
`reload`, the server doesn't end: it waits until a file changes.

This setting is for a server that has already served. A server that has never had a ready worker
ends at the first boot that reports an error, or after three crashes, or earlier if this number is
smaller.""",
    ),
    Setting(
        name="health_check",
        type=PathOrFunction(),
        default=None,
        nullable=True,
        section=_WORKERS,
        help="A path of the app, or module:function, that each worker checks itself with.",
        details="""\
The worker requests the path in its own process, as GET from 127.0.0.1 for the host `localhost`. A
status of 200 to 399 passes. A function passes unless it raises or returns `False`. Checks appear in
neither the metrics nor the access log.

If `health_check_failures` checks in a row fail, the worker is replaced; it serves until the
replacement is ready. The first check runs before the worker is ready. If the app answers it with a
4xx status, the worker fails to boot: the path or the app is wrong.""",
    ),
    Setting(
        name="health_check_interval",
        type=Seconds(1.0),
        default=10.0,
        unit="seconds",
        section=_WORKERS,
        help="The time between two health checks of a worker.",
    ),
    Setting(
        name="health_check_timeout",
        type=Seconds(0.1),
        default=5.0,
        unit="seconds",
        section=_WORKERS,
        help="How long a health check may take.",
        details="""\
In a `sync` worker, a check blocks the worker like a request. If the check hangs, `timeout` ends the
worker.""",
    ),
    Setting(
        name="health_check_failures",
        type=Whole(1),
        default=3,
        unit="checks",
        section=_WORKERS,
        help="How many health checks in a row must fail before the worker is replaced.",
    ),
    Setting(
        name="preload_app",
        type=Switch(),
        default=False,
        flags=("--preload",),
        section=_WORKERS,
        help="Import the app once and fork all workers from that process (Linux).",
        details="""\
The process that imports the app is called a mold; it serves no request. Its workers share the
memory of the imported app and start within milliseconds. A reload makes a new mold. See
[how to share memory between workers](../how-to/preload.md).""",
    ),
    Setting(
        name="refork_after",
        type=Whole(),
        default=0,
        unit="requests",
        section=_WORKERS,
        help="Fork a new mold from a worker that has served this many requests; 0: never.",
        details="""\
Only with `preload_app`, for WSGI apps. The first requests fill caches, separately in each worker.
After this number of requests, a worker drains and forks a mold. The mold forks new workers, which
share the memory of the caches. There is one refork for each release. See [how to share memory
between workers](../how-to/preload.md#share-what-requests-have-loaded).""",
    ),
    Setting(
        name="bake_time",
        type=Seconds(),
        default=0.0,
        unit="seconds",
        section=_WORKERS,
        help="How long a reload can be rolled back, by hand or if it proves bad; 0: not at all.",
        details="""\
For this time after a reload, Servo keeps the old generation of workers (their settings and code),
and compares the new one with it. Servo returns to the old generation in two cases: if new workers
die or fail their health check three times, and more than twice as often as workers did before; or
if, after at least 50 responses, the share of 5xx responses is higher by 5 percentage points.
`servoctl rollback` returns at once.

With `preload_app`, the old code returns. Without it, only the old settings return: workers import
the code that is on disk. See [how to share memory between workers](../how-to/preload.md).""",
    ),
    Setting(
        name="warm_up",
        type=TextList(
            metavar="PATH|MODULE:FUNCTION",
            valid="a list of paths such as /start, or of module:function",
            item=PathOrFunction().from_text,
        ),
        default=[],
        section=_WORKERS,
        help="A path to request or a function to call in a mold before it forks; repeatable.",
        details="""\
Only with `preload_app`. The data that the app loads for its first requests then exists once for all
workers. Paths are requested in the mold's own process, as GET from 127.0.0.1 for the host
`localhost`; a status of 400 or more, or an exception, fails the start or the reload. An ASGI app
can't be requested there, because event loops start in the workers: name functions instead.""",
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
        type=Whole(1, maximum=_MOST_ROWS),
        default=256,
        unit="rows",
        section=_WORKERS,
        reloadable=False,
        help="Rows of the workers' shared table: the most workers that can run at once.",
        details="""\
A worker and its replacement take one row each. If `workers` needs more rows at the start, the table
is larger.""",
    ),
    Setting(
        name="cluster_counters",
        type=Whole(1, maximum=_MOST_COUNTERS),
        default=1000,
        unit="counters",
        section=_WORKERS,
        reloadable=False,
        help="The most counters of `servo.cluster` that the app can have.",
        details="""\
Each combination of labels is a counter. The table is in shared memory: 256 bytes for each counter,
and 8 bytes for each counter in each process that uses counters. It takes no memory if the app has
no counters. See [how to count in all workers together](../how-to/cluster-state.md#counters).""",
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
This gives load balancers time to send requests elsewhere. `graceful_timeout` begins after this
delay. A second `TERM` ends the delay, and `INT` or `QUIT` skip it.""",
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
        name="drain_websockets",
        type=Seconds(),
        default=0.0,
        unit="seconds",
        section=_TIMES,
        help="How long a retired worker of class `async` keeps WebSockets and event streams open.",
        details="""\
A reload, `max_requests` and scaling down retire workers. A retired worker finishes its requests
within `graceful_timeout`, while its replacement serves new ones. With this setting, it keeps its
WebSockets and its responses of the type `text/event-stream` for this long. Then it closes the
WebSockets with 1012, and ends the streams. At most `workers` retired workers linger in this way; if
there are more, the oldest one closes its WebSockets early. A stop of the server does not wait.""",
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

If this is unset, and there is more than one worker of class `sync` or `async`, a busy worker closes
connections after each response for the next 30 s. Otherwise requests on these connections would
wait for the busy worker while other workers are idle. A worker is busy if its requests block it for
more than 1 ms each on average (5 ms over TLS) and for more than 5 % of the time. An `async` worker
is blocked while a handler blocks its event loop.""",
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
