"""Counts the entries of the error log by level, for the metrics.

Each process counts in its own words of shared memory (a worker in its row of the scoreboard), and
the metrics process reads them. The counter is a filter of the logger, not a handler, because a
user's logging configuration may replace the handlers. It counts each record at or above the log's
level, even if no handler writes the record.
"""

from __future__ import annotations

import logging
import threading

from servo.logs.error_log import ERROR_LOGGER
from servo.shared_memory.row_layout import LOG_CRITICAL, LOG_ERROR, LOG_EXCEPTION, LOG_WARNING

# The first of four words in a worker's row, one for each of `LOG_LEVELS`.
ROW_LOG = LOG_WARNING
LOG_LEVELS = ("warning", "error", "critical", "exception")


class LogCounter(logging.Filter):
    """A filter that lets every record pass and counts it.

    words  the shared memory, as an array of 64-bit numbers
    first  the index of the first of the four words for the counts
    """

    def __init__(self, words: memoryview, first: int) -> None:
        super().__init__()
        self._words = words
        self._first = first
        # Count here, and only copy the counts to the words. A faulty process may overwrite the
        # words, and an addition to such a word could overflow.
        self._counts = [0] * len(LOG_LEVELS)
        # Any thread may log, and `+= 1` is not atomic.
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter. As in gunicorn, an entry with a traceback is only an "exception"."""
        if record.levelno >= logging.WARNING:
            if record.exc_info:
                level = LOG_EXCEPTION
            elif record.levelno >= logging.CRITICAL:
                level = LOG_CRITICAL
            elif record.levelno >= logging.ERROR:
                level = LOG_ERROR
            else:
                level = LOG_WARNING
            with self._lock:
                index = level - LOG_WARNING
                self._counts[index] += 1
                self._words[self._first + index] = self._counts[index]
        return True


def count_log(words: memoryview | None, first: int = ROW_LOG) -> None:
    """Set where this process counts the entries of its error log.

    words  the shared memory; None to stop counting
    first  the index of the first of the four words for the counts

    A forked child inherits its parent's counter, so it must also call this.
    """
    logger = logging.getLogger(ERROR_LOGGER)
    for each in [each for each in logger.filters if isinstance(each, LogCounter)]:
        logger.removeFilter(each)
    if words is not None:
        logger.addFilter(LogCounter(words, first))
