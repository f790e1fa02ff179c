"""The servers that are compared, and the flags of each for what a workload needs.

All settings have their defaults, except for one worker, no access log, and what a `Setup` needs. If
a server lacks a feature, `Server.check` raises an UnableError, whose text appears in the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
# Everything that a measurement makes: environments, programs, the certificate, logs.
WORK = REPOSITORY / ".bench"
# Key and certificate in one file.
CERTIFICATE = WORK / "certificate.pem"
# Built from polling.c.
POLLING = WORK / "polling.so"
# Built from generator.c.
GENERATOR = WORK / "generator"
# The files of the workload `static`.
STATIC_FILES = WORK / "static"

PORT = 18_765
BIND = f"127.0.0.1:{PORT}"
# nginx listens here if it is the proxy in front of the server (nginx.py).
PROXY_PORT = PORT + 1


class UnableError(Exception):
    """A server lacks a feature that a workload needs; the message names it."""


@dataclass(frozen=True)
class Setup:
    """What a workload needs from the start of a server."""

    app: str = "apps.hello"
    workers: int = 1
    tls: bool = False
    access_log: bool = False
    # Over 1,000 connections, which must stay open; some servers' default limit is lower.
    many: bool = False


@dataclass(frozen=True)
class Family:
    """Flags that all variants of a server share; None if the server lacks the feature."""

    command: tuple[str, ...]
    workers: str | None
    access_log: tuple[str, ...] | None = None
    no_access_log: tuple[str, ...] = ()
    tls: tuple[str, ...] | None = None
    many: tuple[str, ...] = ()
    app: tuple[str, ...] = ()  # stands before the application's name
    reloads: bool = False  # HUP replaces the workers
    package: str = ""  # its name in requirements.txt; "": it is always there


FAMILIES = {
    "servo": Family(
        command=("-m", "servo", "--bind", BIND, "--log-level", "warning"),
        workers="--workers",
        access_log=("--access-logfile", "-"),
        tls=("--certfile",),
        many=("--worker-connections", "2000"),
        reloads=True,
    ),
    "gunicorn": Family(
        package="gunicorn",
        # With --http-parser auto, it would take its C parser, because that is installed.
        command=(
            *("-m", "gunicorn", "--bind", BIND, "--log-level", "warning"),
            *("--http-parser", "python"),
        ),
        workers="--workers",
        access_log=("--access-logfile", "-"),
        tls=("--certfile", "--keyfile"),
        # By default it closes idle connections after 2 s.
        many=("--worker-connections", "2000", "--keep-alive", "75"),
        reloads=True,
    ),
    "uvicorn": Family(
        package="uvicorn",
        command=("-m", "uvicorn", "--port", str(PORT), "--http", "httptools", "--loop", "uvloop"),
        workers="--workers",
        access_log=(),
        no_access_log=("--no-access-log", "--log-level", "warning"),
        tls=("--ssl-certfile", "--ssl-keyfile"),
        many=("--timeout-keep-alive", "75"),
        reloads=True,
    ),
    "hypercorn": Family(
        package="hypercorn",
        command=("-m", "hypercorn", "--bind", BIND, "-k", "uvloop"),
        workers="--workers",
        access_log=("--access-logfile", "-"),
        tls=("--certfile", "--keyfile"),
        many=("--keep-alive", "75"),
    ),
    "granian": Family(
        package="granian",
        command=("-m", "granian", "--port", str(PORT)),
        workers="--workers",
        access_log=("--access-log",),
        tls=("--ssl-certificate", "--ssl-keyfile"),
        reloads=True,
    ),
    "waitress": Family(
        package="waitress",
        command=("-m", "waitress", f"--listen={BIND}"),
        workers=None,
        many=("--connection-limit=2000", "--asyncore-use-poll"),
    ),
    "fastpysgi": Family(
        package="fastpysgi",
        command=("serve_fastpysgi.py",),
        workers="",
        tls=("",),
    ),
    "pounce": Family(
        package="bengal-pounce",
        command=("-m", "pounce", "serve", "--port", str(PORT), "--log-level", "warning"),
        workers="--workers",
        access_log=(),
        no_access_log=("--no-access-log",),
        tls=("--ssl-certfile", "--ssl-keyfile"),
        many=("--keep-alive-timeout", "75"),
        app=("--app",),
    ),
    "nginx": Family(
        command=(),  # nginx.py has it
        workers="",
        tls=("",),
    ),
}

# The kind of a server without Python, which is a peer of all kinds.
FLOOR = "floor"


@dataclass(frozen=True)
class Server:
    """One row of the tables. Its kind (wsgi, asgi, websocket, …) selects the workloads."""

    name: str
    kind: str
    family: Family
    flags: tuple[str, ...] = ()
    # It speaks HTTP/2 without TLS, by prior knowledge.
    cleartext: bool = True
    # False: it sends `Connection: close` with each response.
    keeps_alive: bool = True
    # A package of requirements.txt that these flags need.
    package: str = ""
    # A tree with Servo, which takes precedence over the installed, compiled package.
    source: Path | None = None
    # Two Servos on different ports can run side by side.
    port: int = PORT

    @property
    def is_servo(self) -> bool:
        return self.family is FAMILIES["servo"]

    @property
    def packages(self) -> list[str]:
        """The packages of requirements.txt without which it can't run."""
        return [name for name in (self.family.package, self.package) if name]

    @property
    def speaks_wsgi(self) -> bool:
        return self.kind == "wsgi" or (
            self.kind == "memory" and self.family is not FAMILIES["uvicorn"]
        )

    def command(self, setup: Setup) -> list[str]:
        """Arguments for the interpreter; raises UnableError."""
        self.check(setup)
        app = f"{setup.app}:{'wsgi' if self.speaks_wsgi else 'asgi'}"
        certificate = str(CERTIFICATE)
        if self.family is FAMILIES["fastpysgi"]:
            tls = [certificate] if setup.tls else []
            return [*self.family.command, app, str(PORT), str(setup.workers), *tls]
        bind = f"127.0.0.1:{self.port}"
        command = [bind if part == BIND else part for part in self.family.command]
        command += self.flags
        if self.family.workers:
            command += [self.family.workers, str(setup.workers)]
        if setup.tls:
            command += [part for flag in self.family.tls or () for part in (flag, certificate)]
        command += (self.family.access_log or ()) if setup.access_log else self.family.no_access_log
        if setup.many:
            command += self.family.many
        return [*command, *self.family.app, app]

    def check(self, setup: Setup) -> None:
        if setup.workers > 1 and self.family.workers is None:
            raise UnableError("has one process only")
        if setup.access_log and self.family.access_log is None:
            raise UnableError("has no access log")
        if setup.tls and self.family.tls is None:
            raise UnableError("has no TLS")
        if self.kind == "http2" and not setup.tls and not self.cleartext:
            raise UnableError("has no HTTP/2 without TLS")


def _servers() -> list[Server]:
    servo, gunicorn, uvicorn, hypercorn, granian, waitress, fastpysgi, pounce, _ = FAMILIES.values()
    threads, c_parser = ("-k", "gthread", "--threads", "4"), ("--http-parser", "fast")
    return [
        Server("servo-sync", "wsgi", servo, ("-k", "sync")),
        Server("servo-thread", "wsgi", servo, ("-k", "thread", "--threads", "4")),
        Server("servo-sync-plain", "wsgi", servo, ("-k", "sync"), source=REPOSITORY),
        Server(
            "servo-thread-plain",
            "wsgi",
            servo,
            ("-k", "thread", "--threads", "4"),
            source=REPOSITORY,
        ),
        Server("gunicorn-sync", "wsgi", gunicorn, ("-k", "sync"), keeps_alive=False),
        Server("gunicorn-gthread", "wsgi", gunicorn, threads),
        Server(
            "gunicorn-gthread-c", "wsgi", gunicorn, (*threads, *c_parser), package="gunicorn-h1c"
        ),
        Server("granian-wsgi", "wsgi", granian, ("--interface", "wsgi")),
        Server("waitress", "wsgi", waitress),
        Server("fastpysgi-wsgi", "wsgi", fastpysgi),
        Server("servo-async", "asgi", servo, ("-k", "async")),
        Server("servo-async-plain", "asgi", servo, ("-k", "async"), source=REPOSITORY),
        Server("uvicorn", "asgi", uvicorn),
        Server("uvicorn-zttp", "asgi", uvicorn, ("--http", "zttp"), package="zttp"),
        Server("gunicorn-asgi", "asgi", gunicorn, ("-k", "asgi")),
        Server(
            "gunicorn-asgi-c", "asgi", gunicorn, ("-k", "asgi", *c_parser), package="gunicorn-h1c"
        ),
        Server("hypercorn", "asgi", hypercorn),
        Server("granian-asgi", "asgi", granian, ("--interface", "asgi")),
        Server("fastpysgi-asgi", "asgi", fastpysgi),
        Server("pounce", "asgi", pounce),
        Server("servo-websocket", "websocket", servo, ("-k", "async")),
        Server("uvicorn-websockets", "websocket", uvicorn, ("--ws", "websockets")),
        Server("uvicorn-sansio", "websocket", uvicorn, ("--ws", "websockets-sansio")),
        Server("uvicorn-wsproto", "websocket", uvicorn, ("--ws", "wsproto")),
        Server("gunicorn-websocket", "websocket", gunicorn, ("-k", "asgi")),
        Server("hypercorn-websocket", "websocket", hypercorn),
        Server("granian-websocket", "websocket", granian, ("--interface", "asgi")),
        Server("fastpysgi-websocket", "websocket", fastpysgi),
        Server(
            "servo-http2",
            "http2",
            servo,
            ("-k", "async", "--http2-cleartext", "prior-knowledge"),
        ),
        Server(
            "gunicorn-http2",
            "http2",
            gunicorn,
            ("-k", "asgi", "--http-protocols", "h2,h1"),
            cleartext=False,
        ),
        Server("uvicorn-http2", "http2", uvicorn, ("--http", "zttp", "--http2"), package="zttp"),
        Server("hypercorn-http2", "http2", hypercorn, ("--config", "hypercorn.toml")),
        Server("granian-http2", "http2", granian, ("--http", "2", "--interface", "asgi")),
        Server("servo-memory", "memory", servo, ("-k", "sync")),
        Server("servo-memory-preload", "memory", servo, ("-k", "sync", "--preload")),
        Server(
            "servo-memory-warm",
            "memory",
            servo,
            ("-k", "sync", "--preload", "--warm-up", "/?n=1"),
        ),
        Server("gunicorn-memory", "memory", gunicorn, ("-k", "sync"), keeps_alive=False),
        Server(
            "gunicorn-memory-preload",
            "memory",
            gunicorn,
            ("-k", "sync", "--preload"),
            keeps_alive=False,
        ),
        Server(
            "granian-memory",
            "memory",
            granian,
            ("--interface", "wsgi", "--respawn-failed-workers", "--respawn-interval", "0.1"),
        ),
        Server("uvicorn-memory", "memory", uvicorn),
        Server("nginx", FLOOR, FAMILIES["nginx"]),
    ]


SERVERS = {server.name: server for server in _servers()}
