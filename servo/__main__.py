"""The `servo` command, also as `python -m servo`."""

from __future__ import annotations

import gc
import sys

# By default the garbage collector runs when 700 new objects may be part of cycles (2,000 from
# Python 3.13 on). In a server hardly any are, so it runs less often here. This is set before the
# imports, whose objects are never garbage.
THRESHOLD = (10_000, 20, 20)


def main() -> int:
    """Tune the garbage collector and run the command. Returns its exit code."""
    gc.set_threshold(*THRESHOLD)
    from servo.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
