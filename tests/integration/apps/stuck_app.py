"""Applications that get stuck in different ways: `wsgi` and `asgi`, by the path."""

import logging
import os
import signal
import sys
import time


def sleep():
    time.sleep(3600)


def compute():
    while True:
        pass


def deaf():
    """No signal that a process can ignore ends it."""
    signals = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    time.sleep(3600)


def without_alarm():
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    time.sleep(3600)


def hold_the_lock():
    """The interpreter's lock is held: no other thread and no handler of a signal runs."""
    sum(range(1 << 62))


def print_much():
    """Fills the pipe that stdout may be, and blocks when its reader has stopped."""
    os.write(1, b"x" * (1 << 20))


def log_and_sleep():
    for line in ("the first line", "the last line"):
        logging.getLogger("gunicorn.error").warning("%s before it got stuck", line)
    time.sleep(3600)


WAYS = {
    "/log-and-sleep": log_and_sleep,
    "/sleep": sleep,
    "/compute": compute,
    "/deaf": deaf,
    "/without-alarm": without_alarm,
    "/hold-the-lock": hold_the_lock,
    "/print": print_much,
}


def answer(path):
    if path in WAYS:
        # A test waits for this before it goes on; not by the log, which may be what is stuck.
        open("begun", "a").close()
        WAYS[path]()
    if path == "/log":
        print("x" * 4000, file=sys.stderr)
    return str(os.getpid()).encode()


def wsgi(environ, start_response):
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("HTTP only")
    body = answer(scope["path"])
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
