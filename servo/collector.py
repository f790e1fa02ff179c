"""Sets the thresholds of Python's garbage collector: one for imports, another for requests.

By default the collector runs after 700 new objects that may be part of reference cycles (2,000 from
Python 3.13 on).
"""

from __future__ import annotations

import gc

# Modules and classes are never garbage, so imports rarely need the collector.
IMPORTING = (10_000, 20, 20)
# Garbage in cycles takes memory until the collector runs. With 10,000 objects, each worker of a
# Django project with forms needed 1.6 MB more. The CPU time per request does not depend on the
# threshold, because a worker has frozen the objects of its imports: the collector examines only the
# objects that requests make.
SERVING = (2_000, 20, 20)


def tune_for_imports() -> None:
    """Let the collector run less often. Call this before the imports."""
    gc.set_threshold(*IMPORTING)


def tune_for_requests() -> None:
    """Let the collector run more often, unless the application has set its own thresholds.

    Also exclude all present objects from its search for cycles. Modules and classes are never
    garbage, and searching them takes a tenth of a request's time in frameworks that make many
    objects.
    """
    gc.collect()
    gc.freeze()
    # Python 3.14 ignores the third threshold.
    if gc.get_threshold()[:2] == IMPORTING[:2]:
        gc.set_threshold(*SERVING)
