"""Draw the plot of a record: a bar for each server, a panel for each workload and interface.

python plots.py RECORD.json PICTURE.svg       (in the environment, which has matplotlib)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from report import COLUMNS, KINDS
from servers import SERVERS
from workloads import WORKLOADS

matplotlib.use("svg")
from matplotlib import pyplot

SERVO, PEER = "#c2410c", "#94a3b8"
COLUMNS_OF_PICTURES = 3
BAR_INCHES = 0.17


def main(source: Path, target: Path) -> None:
    record = json.loads(source.read_text())
    charts = list(panels(record))
    if not charts:
        return
    pyplot.rcParams.update({"font.size": 6, "svg.hashsalt": "servo", "svg.fonttype": "none"})
    across = min(COLUMNS_OF_PICTURES, len(charts))
    down = -(-len(charts) // across)
    tallest = max(len(bars) for _, bars in charts)
    size = (3.1 * across, (tallest * BAR_INCHES + 0.45) * down)
    figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(charts) :]:
        axis.set_visible(False)
    for axis, (title, bars) in zip(axes.flat, charts, strict=False):
        draw(axis, title, bars)
    figure.savefig(target, metadata={"Date": None})


def panels(record: dict[str, Any]) -> Any:
    """(title, [(server, median, least, greatest)]) of each panel; the largest median comes first,
    because matplotlib draws the first bar at the bottom."""
    for kind, heading in KINDS.items():
        for workload, servers in record["figures"].items():
            key, unit, _ = COLUMNS[WORKLOADS[workload].how][0]
            bars = [
                (name, *figures[key])
                for name, figures in servers.items()
                if SERVERS[name].kind == kind and key in figures
            ]
            if bars:
                yield f"{heading}, {workload}: {unit}", sorted(bars, key=lambda bar: -bar[1])


def draw(axis: Any, title: str, bars: list[tuple[str, float, float, float]]) -> None:
    names = [name for name, *_ in bars]
    middles = [middle for _, middle, _, _ in bars]
    errors = [[m - low for _, m, low, _ in bars], [high - m for _, m, _, high in bars]]
    colours = [SERVO if SERVERS[name].is_servo else PEER for name in names]
    axis.barh(names, middles, color=colours, height=0.7)
    axis.errorbar(middles, names, xerr=errors, fmt="none", ecolor="black", elinewidth=0.5)
    for name, middle, _, greatest in bars:
        axis.text(greatest, name, f" {middle:.3g}", va="center", fontsize=5)
    axis.set_title(title, loc="left", fontsize=6)
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=2, pad=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
