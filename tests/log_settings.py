"""Settings of the logs, and a logging configuration of a user, for tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


def log_settings(**changes: object) -> SimpleNamespace:
    """The default settings of the logs, with these changes."""
    values = {
        "errorlog": "-",
        "accesslog": None,
        "loglevel": "info",
        "log_format": "text",
        "capture_output": False,
        "logconfig": None,
        "logconfig_json": None,
        "logconfig_dict": {},
    }
    return SimpleNamespace(**(values | changes))


def file_config(path: Path | str, kind: str = "logging.FileHandler") -> dict[str, Any]:
    """A logging configuration that sends gunicorn's error log to a file."""
    return {
        "version": 1,
        "handlers": {"own": {"class": kind, "filename": str(path)}},
        "loggers": {"gunicorn.error": {"handlers": ["own"], "level": "INFO"}},
    }
