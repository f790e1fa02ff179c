"""`python -m servo` is the `servo` command."""

from __future__ import annotations

import gc
import sys

# The collector looks when some ten thousand objects may be in cycles, instead of 700 (2,000 from
# Python 3.13 on): in a server they hardly ever are. From the first import on, whose objects
# are never garbage.
THRESHOLD = (10_000, 20, 20)


def main() -> int:
    """Tune the interpreter, and run the command; its exit code."""
    gc.set_threshold(*THRESHOLD)
    from servo.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
