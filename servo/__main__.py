"""The `servo` command, also as `python -m servo`."""

from __future__ import annotations

import sys

from servo.collector import tune_for_imports


def main() -> int:
    """Tune the garbage collector and run the command. Returns its exit code."""
    tune_for_imports()
    from servo.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
