"""Run the fuzz targets, in an environment with atheris: `make fuzz`.

    python tests/fuzz/run.py [--seconds 60] [TARGET ...]

An input that breaks an invariant is saved in tests/fuzz/corpus as crash-…, where the tests replay
it; commit it with the fix. An input that only covers new code stays in .fuzz/ for the next run.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from importlib import import_module
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
TARGETS = ("httptools", "h11", "differential", "warm")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    options = parser.parse_args()
    failed = [target for target in options.targets if fuzz(target, options.seconds)]
    print(f"failed: {', '.join(failed)}" if failed else "no invariant was broken")
    return 1 if failed else 0


def fuzz(target: str, seconds: int) -> int:
    """Run one target in a separate process, because atheris exits at the first failure."""
    from fuzz.harness import CORPUS, seeds_of

    kept = REPOSITORY / ".fuzz" / "corpus" / target
    kept.mkdir(parents=True, exist_ok=True)
    for seed in seeds_of(target):
        (kept / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    print(f"--- {target}: {seconds} s", flush=True)
    arguments = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=10",
        "-print_final_stats=1",
    ]
    arguments += [f"-artifact_prefix={CORPUS}/{target}-", "-verbosity=0", str(kept)]
    command = [sys.executable, __file__, "--child", target, *arguments]
    return subprocess.run(command, check=False).returncode


def child(target: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["servo", "h11", "fuzz"]):
        module = import_module(f"fuzz.{target}")
    atheris.Setup([sys.argv[0], *arguments], module.target)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(REPOSITORY)]
    # Not this file's directory: its modules would hide the h11 and httptools that they fuzz.
    sys.path = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
