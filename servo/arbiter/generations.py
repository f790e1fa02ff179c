"""The settings of each generation of workers, and the certificates that they name.

A reload reads every source of settings again: first in a temporary child process (see
`config_check`), then here. If the new settings have an error, the current generation stays as it
is.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from servo.arbiter.cgroup_memory import bytes_of, memory_limit
from servo.arbiter.core.policy import Policy
from servo.arbiter.processes import spawn
from servo.arbiter.processes.config_check import configuration_error
from servo.errors import ConfigError, ServoError
from servo.logs import error_log as log_module
from servo.net.tls_switch import check_switch, wants_tls
from servo.settings.workdir import working_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.limit import CodeLimit
    from servo.net.tls import TLS
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")


class Generations:
    """The settings and certificates of each generation that has, or will have, workers.

    settings         the settings that this program starts with
    reload_settings  reads every source again; raises ConfigError
    limit            the time limit for code of the configuration
    first            the number of the generation that has these settings

    The attribute `settings` has the settings of the current generation.
    """

    def __init__(
        self,
        settings: Settings,
        reload_settings: Callable[[], Settings],
        limit: CodeLimit,
        first: int = 1,
    ) -> None:
        self.settings = settings
        self._limit = limit
        self._reload_settings = reload_settings
        self._known: dict[int, tuple[Settings, TLS | None]] = {first: (settings, None)}
        self._first = first

    def __getitem__(self, generation: int) -> tuple[Settings, TLS | None]:
        return self._known[generation]

    def numbers(self) -> set[int]:
        """The numbers of these generations."""
        return set(self._known)

    def read_certificates(self) -> TLS | None:
        """Read the certificates of the first generation. Raises ConfigError."""
        tls = _make_tls(self.settings)
        self._known[self._first] = self.settings, tls
        return tls

    @property
    def tls(self) -> TLS | None:
        """The certificates of the current generation; None without TLS."""
        return next(tls for settings, tls in self._known.values() if settings is self.settings)

    @property
    def first(self) -> tuple[Settings, TLS | None]:
        """The settings and certificates that this program has started with."""
        return self._known[self._first]

    def read(self) -> tuple[Settings, TLS | None]:
        """Read every source of settings again, and the certificates that they name."""
        settings = self._reload_settings()
        check_switch(self.settings, settings)
        check_preload(settings)
        return settings, _make_tls(settings)

    def load(self, generation: int) -> str | None:
        """Read the settings of a new generation. Returns None, or the error in them."""
        loaded: list[tuple[Settings, TLS | None]] = []

        def load() -> None:
            loaded.append(self.read())
            _set_up_logging(loaded[0][0])

        limit_s = self.settings.hook_timeout
        error = configuration_error(lambda: self._limit.call(limit_s, load))
        if error is not None:
            self._apply_logging()
            return error
        ((settings, tls),) = loaded
        log_notes(settings, tls)
        for name in self.settings.needs_restart(settings):
            log.warning("%s has changed: this takes a restart, not a reload", name)
        apply_environment(settings)
        hand_over_logs(settings)
        self._known[generation] = settings, tls
        return None

    def copy(self, old: int, new: int) -> None:
        """Give a new generation the settings and certificates of an old one."""
        self._known[new] = self._known[old]

    def adopt(self, generation: int) -> None:
        """Make a generation the current one."""
        self.settings, _ = self._known[generation]
        # Another generation's settings may have been read since this one's.
        self._apply_logging()

    def drop(self, generation: int) -> None:
        """Forget a generation that has no workers, and will get none."""
        self._known.pop(generation, None)
        # The logs use the settings that were read last. Undo this after a roll-back.
        self._apply_logging()

    def _apply_logging(self) -> None:
        try:
            self._limit.call(self.settings.hook_timeout, _set_up_logging, self.settings)
        except ServoError as error:
            log.error("The log can't be set up: %s", error)


def policy_of(settings: Settings, capacity: int) -> Policy:
    """Build the supervisor's policy from the settings.

    capacity  rows of the scoreboard: at most this many worker processes at a time
    """
    memory = memory_limit()
    return Policy(
        workers=settings.worker_count,
        max_workers=settings.max_workers,
        scale_down_delay_s=settings.scale_down_delay,
        timeout_s=settings.timeout,
        boot_timeout_s=settings.boot_timeout,
        graceful_timeout_s=settings.graceful_timeout,
        drain_websockets_s=settings.drain_websockets,
        pre_stop_delay_s=settings.pre_stop_delay,
        max_lifetime_s=settings.max_lifetime,
        request_timeout_s=settings.request_timeout,
        reload_batch=settings.reload_batch,
        capacity=capacity,
        max_boot_failures=settings.max_boot_failures,
        max_memory_bytes=bytes_of(settings.max_worker_memory, memory),
        max_memory_hard_bytes=bytes_of(settings.max_worker_memory_hard, memory),
        wait_for_change=settings.reload,
        bake_time_s=settings.bake_time,
        preload=settings.preload_app,
        refork_after=settings.refork_after,
        own_queues=settings.reuse_port,
        app_may_control=settings.cluster_control,
        workers_of=counts_by_class(settings),
    )


def check_preload(settings: Settings) -> None:
    """Raise ConfigError if `preload_app` is set on a system where molds don't work."""
    if not settings.preload_app:
        return
    problem = spawn.adopt_orphans()
    if problem is not None:
        raise ConfigError(
            f"preload_app ({settings.source('preload_app')}) works on Linux only: {problem}; "
            "leave it out, and each worker imports the app itself"
        )


def counts_by_class(settings: Settings) -> dict[str, int]:
    """The number of workers for each class that the app may need.

    It is empty unless `workers` and `worker_class` are both "auto". If they are, the number depends
    on the app's interface, WSGI or ASGI, which is known only when a worker has imported the app.
    """
    if settings.workers != "auto" or settings.worker_class != "auto":
        return {}
    classes = {settings.worker_class_for(interface) for interface in ("wsgi", "asgi")}
    return {name: settings.worker_count_for(name) for name in sorted(classes)}


def _set_up_logging(settings: Settings) -> None:
    """Set up the logs. Relative paths start at the settings' directory. Raises ConfigError."""
    try:
        # Change the directory for this step only: the arbiter's sockets may have relative paths,
        # and these start at the arbiter's own directory.
        with working_in(settings.directory):
            log_module.setup_logging(settings)
    except OSError as error:
        raise ConfigError(
            f"can't change to the directory {settings.chdir}: {error.strerror}"
        ) from error


def log_notes(settings: Settings, tls: TLS | None) -> None:
    """Log the warnings from reading the settings and the certificates."""
    for level, text in settings.notes:
        log.log(log_module.LEVELS[level], "%s", text)
    for text in tls.warnings if tls is not None else ():
        log.warning("%s", text)


def apply_environment(settings: Settings) -> None:
    """Set the environment variables and the umask, which workers inherit."""
    os.environ.update(settings.env)
    if settings.source("umask") != "default":
        os.umask(settings.umask)


def hand_over_logs(settings: Settings) -> None:
    """Let workers write and reopen the log files even after they have given up root."""
    if os.geteuid() == 0 and (settings.user is not None or settings.group is not None):
        log_module.chown_logs(settings.user, settings.group)


def _make_tls(settings: Settings) -> TLS | None:
    """See servo.net.tls.make_tls."""
    if not wants_tls(settings):
        return None
    from servo.net.tls import make_tls  # see servo.net.tls_switch

    return make_tls(settings)
