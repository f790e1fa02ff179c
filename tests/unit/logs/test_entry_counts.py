"""Entries of the error log are counted by level in shared memory."""

from __future__ import annotations

import logging

import pytest

from servo.logs.entry_counts import LOG_LEVELS, count_log
from servo.logs.error_log import ERROR_LOGGER
from servo.shared_memory.scoreboard import Scoreboard


@pytest.fixture
def log(monkeypatch):
    logger = logging.getLogger(ERROR_LOGGER)
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logger, "propagate", False)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(level)
    count_log(None)


@pytest.fixture
def table():
    table = Scoreboard(2)
    yield table
    table.close()


def counted(table: Scoreboard) -> dict[str, int]:
    return dict(zip(LOG_LEVELS, table.totals().log, strict=True))


def test_each_level_has_a_count_and_a_traceback_is_an_exception_only(table, log):
    count_log(table.row(table.allocate(1, 1, 1)))
    log.debug("nothing")
    log.info("nothing")
    log.warning("one")
    log.error("two")
    log.error("three")
    log.critical("four")
    try:
        raise RuntimeError("five")
    except RuntimeError:
        log.exception("five")
    assert counted(table) == {"warning": 1, "error": 2, "critical": 1, "exception": 1}


def test_replacing_handlers_keeps_the_counter(table, log):
    count_log(table.row(table.allocate(1, 1, 1)))
    log.handlers = []
    log.addHandler(logging.NullHandler())
    log.warning("one")
    assert counted(table)["warning"] == 1


def test_counts_go_to_the_words_of_the_process_and_survive_it(table, log):
    first, second = table.allocate(1, 1, 1), table.allocate(2, 2, 1)
    count_log(table.row(first))
    log.warning("one")
    count_log(table.row(second))
    log.warning("two")
    count_log(None)
    log.warning("three")
    table.release(first)
    assert counted(table)["warning"] == 2
    assert not any(type(each).__name__ == "LogCounter" for each in log.filters)
