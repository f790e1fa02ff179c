"""Jobs that one worker runs for the whole server (WSGI).

    pip install 'servo-server[cron]'
    servo examples/nightly.py:app -w 4

Each night at 3, old files of a directory are deleted; once a minute, a number is refreshed in all
workers. If the worker that runs the jobs ends, another one takes over.
"""

import logging
import os
import time
from pathlib import Path

from servo import cluster

log = logging.getLogger("nightly")
CACHE = Path(os.environ.get("CACHE_DIRECTORY", "cache"))
KEEP_S = 7 * 24 * 3600
files = 0


@cluster.cron("0 3 * * *", tz="Europe/Berlin")
def clean_up():
    """Delete the files that nobody has changed for a week."""
    deleted = 0
    for path in CACHE.glob("*"):
        if path.is_file() and path.stat().st_mtime < time.time() - KEEP_S:
            path.unlink(missing_ok=True)
            deleted += 1
    log.info("%d old files deleted", deleted)


@cluster.every(60)
def count_files():
    """Count in one worker, and tell all of them."""
    cluster.broadcast(sum(1 for _ in CACHE.glob("*")), topic="files")


@cluster.on_message("files")
def set_files(number):
    """Take the number that one of the workers has counted."""
    global files
    files = number


def app(environ, start_response):
    """Respond with the number of files."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d files\n" % files]
