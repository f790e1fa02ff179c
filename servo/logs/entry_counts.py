"""How many entries the error log got, by level: counted in the shared memory of this process.

What says so is a filter on the logger, not a handler: a user's logging configuration replaces
handlers. It counts what passes the log's level, whatever becomes of it then.
"""

from __future__ import annotations

import logging
import threading

from servo.logs.error_log import ERROR_LOGGER
from servo.shared_memory.row_layout import LOG_CRITICAL, LOG_ERROR, LOG_EXCEPTION, LOG_WARNING

# The words of a worker's row, in the order of `LOG_LEVELS`.
ROW_LOG = LOG_WARNING
LOG_LEVELS = ("warning", "error", "critical", "exception")


class LogCounter(logging.Filter):
    """Lets every record pass, and counts it in four words from `first` on."""

    def __init__(self, words: memoryview, first: int) -> None:
        super().__init__()
        self._words = words
        self._first = first
        # A copy, as another process may write over the words: what is counted can't overflow then.
        self._counts = [0] * len(LOG_LEVELS)
        # Records come from any thread, and `+= 1` on a memoryview is no single step.
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter. As in gunicorn, an entry with a traceback is an exception only."""
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
                place = level - LOG_WARNING
                self._counts[place] += 1
                self._words[self._first + place] = self._counts[place]
        return True


def count_log(words: memoryview | None, first: int = ROW_LOG) -> None:
    """Count this process's entries in these words; None: count them nowhere.

    A forked child inherits the counter of its parent, and has to say where its own is.
    """
    logger = logging.getLogger(ERROR_LOGGER)
    for each in [each for each in logger.filters if isinstance(each, LogCounter)]:
        logger.removeFilter(each)
    if words is not None:
        logger.addFilter(LogCounter(words, first))
