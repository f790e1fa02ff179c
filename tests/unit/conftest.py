"""Undoes the set-up of logging, which holds for the whole process."""

from __future__ import annotations

import logging
import threading

import pytest

from servo.logs import error_log
from servo.logs.log_file import LogFile


@pytest.fixture
def untouched_logging(monkeypatch):
    """Restore everything global that `setup_logging` changes."""
    monkeypatch.setattr(error_log, "_logs", error_log._Logs(LogFile(None, 2)))
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    loggers = logging.Logger.manager.loggerDict
    before = dict(loggers)
    uvicorns = ["uvicorn", "uvicorn.error", "uvicorn.access"]
    names = ["servo", "servo.error", "servo.access", "asyncio", *uvicorns]
    kept = [(logger, _copy(vars(logger))) for logger in map(logging.getLogger, names)]
    root = logging.root.handlers[:], logging.root.level
    yield
    for file in (error_log._logs.error, error_log._logs.access):
        if file is not None:
            file.close()
    for logger, values in kept:
        for handler in logger.handlers:
            handler.close()
        vars(logger).update(values, _cache={})
    for handler in logging.root.handlers:
        if handler not in root[0]:
            handler.close()
    logging.root.handlers[:] = root[0]
    logging.root.setLevel(root[1])
    for name in ("gunicorn.error", "gunicorn.access"):
        loggers.pop(name, None)
        if name in before:
            loggers[name] = before[name]


def _copy(values):
    """The attributes of a logger; its lists are copied, because logging changes them in place."""
    return {k: list(v) if isinstance(v, list) else v for k, v in values.items()}
