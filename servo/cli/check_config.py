"""`--check-config`: performs the checks of a start, but does not bind, fork or write files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from servo.apps.loader import load_app, prepare_import_path
from servo.arbiter.operator.control_service import check_control_socket
from servo.arbiter.pidfile import PidFile
from servo.arbiter.processes.dashboard import check_dashboard
from servo.arbiter.processes.metrics import check_metrics
from servo.logs.error_log import check_logging
from servo.net.tls import make_tls
from servo.settings.sources import drop_config_modules
from servo.workers.registry import worker_for

if TYPE_CHECKING:
    from servo.settings.sources import Settings


def check(settings: Settings) -> None:
    """Check a configuration and load its app, in the order in which a start does.

    Warnings go to stderr. The caller has already changed to the directory of `chdir`.

    settings   the configuration

    Raises the ServoError that a start would raise.
    """
    for level, text in settings.notes:
        if level not in ("info", "debug"):
            _warn(level, text)
    os.environ.update(settings.env)
    check_logging(settings)
    tls = make_tls(settings)
    for text in tls.warnings if tls is not None else ():
        _warn("warning", text)
    if settings.pidfile:
        PidFile(settings.pidfile).check()
    check_control_socket(settings)
    check_metrics(settings)
    check_dashboard(settings)
    drop_config_modules(settings)
    prepare_import_path(settings)
    worker_for(settings, load_app(settings.app, settings.interface))


def _warn(level: str, text: str) -> None:
    click.echo(f"servo: {level}: {text}", err=True)
