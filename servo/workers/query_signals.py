"""The signals that query a worker while it does not read its channel.

A worker whose only thread is busy with a request does not read messages, but it still handles
signals. So the arbiter sends one of these two (see `servo.arbiter.operator.worker_queries`), and
the worker answers into its dump file (see `servo.workers.inspection`).

Both are real-time signals, which applications rarely use. On a system without such signals, the
numbers are 0. A process without a handler dies of them. So the arbiter sends STACK_SIGNAL only
after the worker has reported that it boots, and REQUESTS_SIGNAL only after it is ready.
"""

from __future__ import annotations

import signal

_FIRST_SPARE = getattr(signal, "SIGRTMIN", None)
STACK_SIGNAL: int = 0 if _FIRST_SPARE is None else _FIRST_SPARE + 6
REQUESTS_SIGNAL: int = 0 if _FIRST_SPARE is None else _FIRST_SPARE + 7
