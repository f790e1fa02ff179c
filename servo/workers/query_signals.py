"""The signals by which the arbiter asks a worker that does not read its channel.

A worker whose only thread is busy with a request does not read messages, but it still handles
signals. So the arbiter sends one of these two (see `servo.arbiter.operator.worker_queries`), and
the worker answers into its dump file (see `servo.workers.inspection`).

Both are real-time signals, which no application uses by default, and are 0 where the system has
none. Unhandled, they end a process: a worker gets STACK_SIGNAL only when it has said that it boots,
and REQUESTS_SIGNAL only when it is ready.
"""

from __future__ import annotations

import signal

_FIRST_SPARE = getattr(signal, "SIGRTMIN", None)
STACK_SIGNAL: int = 0 if _FIRST_SPARE is None else _FIRST_SPARE + 6
REQUESTS_SIGNAL: int = 0 if _FIRST_SPARE is None else _FIRST_SPARE + 7
