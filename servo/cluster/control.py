"""Lets an application replace its worker, reload the server, or change the number of workers.

The setting `cluster_control` allows it. All functions return at once: the arbiter decides, and logs
what it does or why it refuses.
"""

from __future__ import annotations

from servo.cluster.messages import backend
from servo.ipc.messages import AppCommand, ReplaceMe

# A detail for the log may have this many characters.
_MAX_DETAIL = 200


def retire(reason: str = "") -> None:
    """Replace this worker: a new one gets ready, then this one finishes its requests and ends.

    reason  a text for the log, such as "the model is out of date"

    Raises ClusterError if `cluster_control` is off, and outside a server.
    """
    if not isinstance(reason, str):
        raise TypeError(f"a reason must be text, not {reason!r}")
    text = " ".join(reason.split())[:_MAX_DETAIL]
    backend().control(
        ReplaceMe("recycled", f"the application asks for it{': ' if text else ''}{text}")
    )


def reload() -> None:
    """Reload the server, as SIGHUP does: all workers are replaced. Raises as `retire`."""
    backend().control(AppCommand("reload"))


def scale(workers: int) -> None:
    """Change the number of workers; with autoscaling, the least number.

    workers  the number, 1 or more

    Raises TypeError or ValueError for another number, and otherwise as `retire`.
    """
    if workers.__class__ is not int:
        raise TypeError(f"the number of workers must be a whole number, not {workers!r}")
    if not 1 <= workers < 1_000_000:
        raise ValueError(f"a server has 1 worker or more, not {workers}")
    backend().control(AppCommand("scale", str(workers)))
