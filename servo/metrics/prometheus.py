"""Renders the metrics of Servo and of the application in Prometheus' formats, by prometheus-client.

If an application uses prometheus-client in several processes (PROMETHEUS_MULTIPROC_DIR), each
process writes its values to files. Here prometheus-client merges the files. Some of its gauges
count only live processes, such as `livesum`: `Exposition.forget` removes the files of these after a
worker has ended.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, multiprocess
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from servo.metrics.families import Reader, families

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servo.metrics.families import Family

log = logging.getLogger("servo.error")

# prometheus-client's `multiprocess` module has no annotations.
_merge: Any = multiprocess.MultiProcessCollector
_mark_dead: Any = multiprocess.mark_process_dead

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def negotiate(accept: str) -> str:
    """Choose the content type for a request.

    accept  the value of its Accept field

    prometheus-client has such a function, too. But that copies parameters from the Accept field,
    and offers versions of the formats that our metrics don't need.
    """
    kinds = [item.partition(";")[0].strip().lower() for item in accept.split(",")]
    return OPENMETRICS if "application/openmetrics-text" in kinds else TEXT


class ServoCollector(Collector):
    """Collects Servo's own metrics."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        return map(_metric, families(self._reader.read()))


class AppCollector(Collector):
    """Collects the metrics that the application's processes have written.

    directory  PROMETHEUS_MULTIPROC_DIR

    If they can't be read, Servo's own metrics are served without them.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._failed = False

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        try:
            found = _merge(None, self._directory).collect()
        except Exception:
            # Any exception is possible: a file may be incomplete, or from another version.
            if not self._failed:
                log.exception("Can't read the application's metrics in %s", self._directory)
            self._failed = True
            found = []
        else:
            self._failed = False
        up = GaugeMetricFamily(
            "servo_app_metrics_readable",
            "1 if the application's own metrics could be read.",
            not self._failed,
        )
        return iter([up, *(each for each in found if not each.name.startswith("servo_"))])


class Exposition:
    """Renders all metrics as text.

    reader     collects Servo's own metrics
    directory  PROMETHEUS_MULTIPROC_DIR; None if the application has no metrics
    """

    def __init__(self, reader: Reader, directory: str | None) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(ServoCollector(reader))
        self._directory = directory
        if directory is not None:
            self._registry.register(AppCollector(directory))

    def render(self, content_type: str) -> bytes:
        """Render all metrics in the format of a content type that `negotiate` returned."""
        generate = generate_openmetrics if content_type == OPENMETRICS else generate_latest
        return generate(self._registry)

    def forget(self, pid: int) -> None:
        """Remove a worker's files for metrics of live processes. Called after its end.

        pid  the worker's process id
        """
        if self._directory is not None and os.path.isdir(self._directory):
            try:
                _mark_dead(pid, self._directory)
            except OSError as error:
                log.warning("Can't remove the metrics of the ended process %d: %s", pid, error)


def _metric(family: Family) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for values, bounds, total in family.parts or [((), family.buckets, family.sum)]:
            buckets = [
                ("+Inf" if bound == float("inf") else repr(bound), float(count))
                for bound, count in bounds
            ]
            histogram.add_metric(values, buckets, total)
        return histogram
    if family.kind == "info":
        info = InfoMetricFamily(family.name, family.help)
        for values, _ in family.samples:
            info.add_metric((), dict(zip(family.labels, values, strict=True)))
        return info
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for values, value in family.samples:
        metric.add_metric(values, value)
    return metric
