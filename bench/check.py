"""Whether Servo got slower beside its peers than the last record says."""

from __future__ import annotations

import json
from pathlib import Path

from report import FORMAT, Ratios, Results, ratios, recorded_ratios

# How much worse, as a share, a ratio may get beyond its spread.
TOLERANCE = 0.10


def recorded(path: Path) -> Ratios | None:
    """The ratios of a record; None if there is none that can be compared with."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return recorded_ratios(found) if found.get("format") == FORMAT else None


def regressions(before: Ratios, now: Results) -> list[str]:
    """A line for each pair whose ratio rose by more than the spread and TOLERANCE, or that Servo
    could be measured in before and not now. The spread is the greater one of the two runs."""
    found = ratios(now)
    worse = []
    for key, (median, least, greatest) in before.items():
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
