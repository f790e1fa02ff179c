"""A library with its own thread: OpenTelemetry, as in docs/how-to/telemetry.md."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
import requests

from integration.server import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from integration.conftest import Serve

pytestmark = pytest.mark.slow

# One file for each worker, instead of a collector that all would send to.
CONFIGURATION = """
import os

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter


def line_of(span):
    return span.to_json(indent=None) + "\\n"


def post_worker_init(worker):
    resource = Resource.create({"service.name": "shop", "service.instance.id": str(os.getpid())})
    provider = TracerProvider(resource=resource)
    out = open(f"spans-{os.getpid()}", "w")
    exporter = ConsoleSpanExporter(out=out, formatter=line_of)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
"""
APP = """
import os

from opentelemetry import trace

tracer = trace.get_tracer("shop")


def app(environ, start_response):
    with tracer.start_as_current_span(environ["QUERY_STRING"]):
        body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def spans(path: Path) -> dict[str, list[str]]:
    """The names of the spans that each worker has written, by its instance id."""
    found: dict[str, list[str]] = {}
    for file in path.glob("spans-*"):
        for line in file.read_text().splitlines():
            span = json.loads(line)
            worker = span["resource"]["attributes"]["service.instance.id"]
            assert file.name == f"spans-{worker}"
            found.setdefault(worker, []).append(span["name"])
    return found


@pytest.mark.parametrize("flags", [(), ("--preload",)], ids=["each", "preload"])
def test_every_worker_exports_its_spans(
    serve: Serve, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "servo.conf.py").write_text(CONFIGURATION)
    server = serve("shop:app", "-c", "servo.conf.py", "-w", "2", *flags, ready=2)
    served: dict[str, list[str]] = {}

    def ask(number: int) -> None:
        worker = requests.get(f"{server.url}/?{number}", timeout=30).text
        served.setdefault(worker, []).append(str(number))

    number = 0
    while len(served) < 2 or number < 40:
        ask(number)
        number += 1
        assert number < 2000
    wait_for(lambda: sum(map(len, spans(tmp_path).values())) > 0, "the first spans")
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    for each in range(number, number + 20):
        ask(each)
    server.stop(signal.SIGTERM)
    # The last ones were sent by a function of atexit.
    assert {worker: sorted(names) for worker, names in spans(tmp_path).items()} == {
        worker: sorted(names) for worker, names in served.items()
    }
