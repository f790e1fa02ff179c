"""Find out whether Servo has become slower, relative to its peers, than in the last record."""

from __future__ import annotations

import json
from pathlib import Path

from report import FORMAT, Ratios, Results, ratios, recorded_ratios

# How much a ratio may rise beyond its spread before it counts as worse (0.05 is 5 %).
TOLERANCE = 0.05


def recorded(path: Path) -> Ratios | None:
    """The ratios of a record; None if there is no record, or one of another format."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return recorded_ratios(found) if found.get("format") == FORMAT else None


def regressions(before: Ratios, now: Results) -> list[str]:
    """One line for each pair that got worse: its ratio rose by more than TOLERANCE and the spread,
    or Servo fails in every round now. The spread is that of the run where it is wider."""
    found = ratios(now)
    worse = []
    for key, (median, least, greatest, *_) in before.items():
        workload, servo, peer = key
        if servo not in now.get(workload, {}) or peer not in now[workload]:
            continue
        if key not in found:
            if all("error" in sample for sample in now[workload][servo]):
                worse.append(f"{workload}: {servo} failed: {now[workload][servo][0]['error']}")
            continue
        spread = max(greatest - least, found[key][2] - found[key][1])
        if found[key][0] > median * (1 + TOLERANCE) + spread:
            worse.append(
                f"{workload}: {servo} / {peer} was {median:.2f}, is {found[key][0]:.2f}"
                f" (spread {spread:.2f})"
            )
    return list(dict.fromkeys(worse))
