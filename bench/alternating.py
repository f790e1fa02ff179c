"""Servo with a worker that counts BLOCK requests, does not count the next BLOCK, and so on.

One process under one load thus gives the cost of a request with counting and without it, and other
programs of the machine affect both alike. Without counting, the worker only notes that a request
has begun and ended, which the gate, the heartbeat and a drain need. When the worker ends, it writes
the CPU time (ns per request) of each block to $ALTERNATING_RESULT.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from time import monotonic_ns, thread_time_ns

from servo.cli.main import main
from servo.workers.request.accounting import Meter

BLOCK = 500

counted = Meter.end
samples = {True: [], False: []}
left = BLOCK
counting = True
since = 0


def uncounted(self, started_ns, request, status, sent, remote, response_headers, environ):
    self.cancel()
    now = monotonic_ns()  # the driver measures its time limits from here
    if self._access is not None:
        raise SystemExit("not for servers with an access log")
    if self._left > 0:
        raise SystemExit("not for servers with max_requests")
    return now


def end(self, started_ns, request, status, sent, remote, response_headers=(), environ=None):
    global left
    left -= 1
    if not left:
        switch()
    if counting:
        return counted(self, started_ns, request, status, sent, remote, response_headers, environ)
    return uncounted(self, started_ns, request, status, sent, remote, response_headers, environ)


def switch():
    global left, counting, since
    now = thread_time_ns()
    if since:
        samples[counting].append((now - since) / BLOCK)
    else:
        atexit.register(write, os.getpid())
    left = BLOCK
    counting = not counting
    since = thread_time_ns()


def write(pid):
    if os.getpid() == pid:
        with open(os.environ["ALTERNATING_RESULT"], "w") as file:
            json.dump([samples[False], samples[True]], file)


Meter.end = end

if __name__ == "__main__":
    sys.exit(main())
