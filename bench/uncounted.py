"""Servo with nothing measured: no counters, no histogram, no metrics. For comparison only.

What the gate, the heartbeat and a drain need is kept: that a request has begun, and that it ended.
"""

from __future__ import annotations

import sys
from time import monotonic_ns

from servo.cli.main import main
from servo.observe.scoreboard import BEAT_NS, IN_FLIGHT
from servo.workers.meter import Meter


def begin(self):
    row = self.row
    now = monotonic_ns()
    if row[IN_FLIGHT] == 0:
        row[BEAT_NS] = now
    row[IN_FLIGHT] += 1
    return now


def end(self, started_ns, request, status, sent, remote, response_headers=(), environ=None):
    self.row[IN_FLIGHT] -= 1
    now = monotonic_ns()  # the driver counts its time limits from it
    if self._access is not None:
        raise SystemExit("not for servers with an access log")
    if self._left > 0:
        raise SystemExit("not for servers with max_requests")
    return now


Meter.begin = begin
Meter.end = end

if __name__ == "__main__":
    sys.exit(main())
