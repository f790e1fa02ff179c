"""The Prometheus rules and the Grafana dashboard of the examples, against Debian's Prometheus.

promtool checks the rules and runs them on series that a test makes up. A real Prometheus scrapes a
real server and evaluates all expressions of both files.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from integration.conftest import Serve, class_args
from integration.server import DEADLINE_S, REPOSITORY, Server, environment, free_port, wait_for
from integration.test_metrics import Metrics, serve_with_metrics

RULES = REPOSITORY / "examples" / "prometheus-alerts.yml"
DASHBOARD = REPOSITORY / "examples" / "grafana-dashboard.json"
PROMTOOL = shutil.which("promtool")
PROMETHEUS = shutil.which("prometheus")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool, of Debian's package prometheus, is not installed"
)
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="Debian's package prometheus is not installed"
)

METRIC = re.compile(r"\bservo_\w+")
MATCHER = re.compile(r"(servo_\w+)\{([^}]*)\}")
LABEL = re.compile(r'(\w+)(=~|=)"([^"]*)"')
# The labels that Prometheus adds. The dashboard selects them by its variables.
TARGET_LABELS = ("job", "instance")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return board


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def dashboard_queries() -> list[str]:
    """All expressions, with Grafana's variables replaced as for "All" and a window of a minute."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    found += [each["expr"] for each in dashboard()["annotations"]["list"]]
    for name, value in [("__rate_interval", "1m"), ("__interval", "1m")]:
        found = [expr.replace(f"${name}", value) for expr in found]
    return [re.sub(r'=~"\$\w+"', '=~".*"', expr) for expr in found]


def promtool(*arguments: str, **options: Any) -> str:
    result = subprocess.run(
        [str(PROMTOOL), *arguments], capture_output=True, text=True, timeout=60, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


# --- the rules ----------------------------------------------------------------------------------


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(RULES))


INSTANCE = 'job="servo", instance="a:9090"'
# The buckets of a histogram: half of 10 new requests per second take less than 1 s, the others 2 s.
SLOW = [("1.073741824", "0+300x60"), ("2.147483648", "0+600x60"), ("+Inf", "0+600x60")]
# Alert -> series that fire it after an hour of one sample a minute, and the alert's own labels.
CASES: dict[str, tuple[dict[str, str], str]] = {
    "ServoNotReady": ({"servo_ready": "0x60"}, ""),
    "ServoArbiterSilent": ({"servo_live": "0x60"}, ""),
    "ServoWorkersMissing": (
        {"servo_workers_target": "4x60", 'servo_workers{state="ready"}': "3x60"},
        "",
    ),
    "ServoErrors": (
        {
            'servo_requests_total{method="GET",status="2xx"}': "0+540x60",
            'servo_requests_total{method="GET",status="5xx"}': "0+60x60",
        },
        "",
    ),
    "ServoReloadRolledBack": ({"servo_last_reload_success": "0x60"}, ""),
    "ServoWorkersDie": (
        {'servo_worker_exits_total{reason="crashed"}': "0x54 1x5"},
        'reason="crashed"',
    ),
    "ServoWorkerBlocked": ({'servo_worker_blocked_seconds{slot="1"}': "12x60"}, 'slot="1"'),
    "ServoSaturated": ({"servo_utilisation": "0.95x60"}, ""),
    "ServoQueueTime": (
        {f'servo_request_queue_seconds_bucket{{le="{le}"}}': v for le, v in SLOW},
        "",
    ),
    "ServoThreadWait": ({"servo_requests_waiting_for_thread": "3x60"}, ""),
    "ServoQueueing": ({'servo_accept_queue_length{listener="x"}': "3x60"}, 'listener="x"'),
    "ServoConnectionsDropped": ({"servo_accept_queue_drops_total": "0x57 9x2"}, ""),
    "ServoRequestsShed": ({"servo_requests_shed_total": "0+5x60"}, ""),
    "ServoLoopLag": ({'servo_worker_loop_lag_seconds{slot="1"}': "0.2x60"}, 'slot="1"'),
}
HEALTHY = {
    "servo_ready": "1x60",
    "servo_live": "1x60",
    "servo_workers_target": "4x60",
    'servo_workers{state="ready"}': "4x60",
    # A reload: a fifth worker, and then a worker that drains.
    'servo_workers{state="booting"}': "0x58 1x1",
    'servo_requests_total{method="GET",status="2xx"}': "0+600x60",
    'servo_requests_total{method="GET",status="5xx"}': "0+1x60",
    "servo_last_reload_success": "1x60",
    'servo_worker_exits_total{reason="replaced"}': "0+4x60",
    'servo_worker_exits_total{reason="recycled"}': "0+4x60",
    'servo_worker_exits_total{reason="crashed"}': "7x60",
    'servo_worker_blocked_seconds{slot="1"}': "0 0 3 0x57",
    "servo_utilisation": "0.5x50 1x2 0.5x8",
    'servo_request_queue_seconds_bucket{le="0.067108864"}': "0+600x60",
    'servo_request_queue_seconds_bucket{le="+Inf"}': "0+600x60",
    "servo_requests_waiting_for_thread": "0 5 0 5x1 0x56",
    'servo_accept_queue_length{listener="x"}': "0 9 0x58",
    "servo_accept_queue_drops_total": "3x60",
    "servo_requests_shed_total": "3x60",
    'servo_worker_loop_lag_seconds{slot="1"}': "0.001x60",
}


def run_rules(directory: Path, series: dict[str, str], expected: list[str]) -> None:
    """Let promtool evaluate the rules, and compare the alerts that fire at the end."""
    inputs = []
    for name, values in series.items():
        metric, _, labels = name.rstrip("}").partition("{")
        labels = ", ".join(filter(None, [INSTANCE, labels]))
        inputs.append({"series": f"{metric}{{{labels}}}", "values": values})
    samples = [{"labels": f"ALERTS{{{labels}}}", "value": 1} for labels in expected]
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": inputs,
                "promql_expr_test": [
                    {
                        "expr": 'ALERTS{alertstate="firing"}',
                        "eval_time": "59m",
                        "exp_samples": samples,
                    }
                ],
            }
        ],
    }
    path = directory / "test.json"
    path.write_text(json.dumps(test))  # JSON is YAML
    promtool("test", "rules", str(path))


@needs_promtool
@pytest.mark.parametrize("alert", [rule["alert"] for rule in rules() if "alert" in rule])
def test_an_alert_fires(tmp_path: Path, alert: str) -> None:
    series, labels = CASES[alert]
    (severity,) = (rule["labels"]["severity"] for rule in rules() if rule.get("alert") == alert)
    all_labels = [f'alertname="{alert}", alertstate="firing", severity="{severity}"', INSTANCE]
    run_rules(tmp_path, series, [", ".join(filter(None, [*all_labels, labels]))])


@needs_promtool
def test_no_alert_fires_for_a_healthy_server(tmp_path: Path) -> None:
    run_rules(tmp_path, HEALTHY, [])


def test_each_alert_says_what_happened_and_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}
            assert "$labels.instance" in str(rule["annotations"])


# --- the dashboard ------------------------------------------------------------------------------


def test_the_dashboard_is_complete() -> None:
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    variables = {each["name"] for each in board["templating"]["list"]}
    assert variables == {"datasource", *TARGET_LABELS}
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for each in (panel, *panel["targets"]):
            # Whoever imports the dashboard chooses the data source.
            assert each["datasource"]["uid"] == "${datasource}"


# --- against a real server ----------------------------------------------------------------------


@pytest.fixture
def monitored(serve: Serve) -> tuple[Server, Metrics]:
    """A server that has reloaded, and has answered requests with several statuses."""
    server, metrics = serve_with_metrics(serve, *class_args("thread"), "-w", "2", ready=2)
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    metrics.wait_value(1, "servo_reloads_total", outcome="finished")
    send_requests(server)
    metrics.wait_value(1, "servo_responses_total", code="404")
    return server, metrics


def send_requests(server: Server) -> None:
    headers = {"X-Request-Start": f"t={time.time():.3f}"}
    assert requests.get(f"{server.url}/", headers=headers, timeout=DEADLINE_S).ok
    assert requests.get(f"{server.url}/nowhere", timeout=DEADLINE_S).status_code == 404


@pytest.mark.slow
def test_every_metric_and_label_exists(monitored: tuple[Server, Metrics]) -> None:
    _, metrics = monitored
    names: set[str] = set()
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    text = requests.get(f"{metrics.url}/metrics", timeout=DEADLINE_S).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names.add(sample.name)
            for label, value in sample.labels.items():
                values[sample.name, label].add(value)
    expressions = [rule["expr"] for rule in rules()] + dashboard_queries()
    used = {name for expr in expressions for name in METRIC.findall(expr)}
    assert len(used) > 30
    assert used <= names, f"not in a scrape: {used - names}"
    for expr in expressions:
        for name, labels in MATCHER.findall(expr):
            for label, _, pattern in LABEL.findall(labels):
                if label in TARGET_LABELS:
                    continue
                known = values[name, label]
                alternatives = [
                    any(re.fullmatch(alternative, value) for value in known)
                    for alternative in pattern.split("|")
                ]
                # A status code has a series only after such a response.
                found = any(alternatives) if label == "code" else all(alternatives)
                assert found, f"{name} has no {label}={pattern!r}, only {known}"


@needs_promtool
@pytest.mark.slow
def test_promtool_accepts_a_scrape(monitored: tuple[Server, Metrics]) -> None:
    _, metrics = monitored
    text = requests.get(f"{metrics.url}/metrics", timeout=DEADLINE_S).text
    promtool("check", "metrics", input=text)


class Prometheus:
    """A Prometheus that scrapes one server, with the rules of the examples."""

    def __init__(self, directory: Path, target: str) -> None:
        self.port = free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "servo", "static_configs": [{"targets": [target]}]}],
        }
        path = directory / "prometheus.json"
        path.write_text(json.dumps(config))
        self._log = (directory / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={path}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def get(self, page: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{page}"
        answer = requests.get(url, params=parameters, timeout=DEADLINE_S).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expr: str) -> list[Any]:
        found: list[Any] = self.get("query", query=expr)["result"]
        return found

    def is_up(self) -> bool:
        assert self._process.poll() is None, "Prometheus has ended"
        try:
            ready = requests.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=DEADLINE_S).ok
        except requests.ConnectionError:
            return False
        return ready and bool(self.query("up == 1"))

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(DEADLINE_S)
        self._log.close()


@pytest.fixture
def prometheus(tmp_path: Path, monitored: tuple[Server, Metrics]) -> Iterator[Prometheus]:
    prometheus = Prometheus(tmp_path, monitored[1].url.removeprefix("http://"))
    try:
        yield prometheus
    finally:
        prometheus.stop()


@needs_prometheus
@pytest.mark.slow
def test_a_real_prometheus_evaluates_everything(
    monitored: tuple[Server, Metrics], prometheus: Prometheus
) -> None:
    server, _ = monitored
    wait_for(prometheus.is_up, "a scrape by Prometheus")

    def has_rates() -> bool:
        send_requests(server)
        return all(
            prometheus.query(f"{rate}(servo_responses_total{{code='404'}}[1m]) > 0")
            for rate in ("rate", "increase")
        )

    wait_for(has_rates, "rates")
    for expr in dashboard_queries():
        found = prometheus.query(expr)
        # These show only events.
        assert found or "> 0" in expr, f"{expr} has no data"

    def evaluated() -> list[dict[str, Any]]:
        groups = prometheus.get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_for(lambda: all(rule["health"] != "unknown" for rule in evaluated()), "the rules")
    assert len(evaluated()) == len(rules())
    assert [rule for rule in evaluated() if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in evaluated() if rule.get("state") == "firing"] == []
