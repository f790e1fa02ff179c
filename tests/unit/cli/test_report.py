"""The text of a bug report: its sections, and no secret in any of them."""

from __future__ import annotations

import json
from typing import Any

from servo.arbiter.operator.report import facts
from servo.cli import report
from servo.control.redaction import REMOVED

STATUS: dict[str, Any] = {
    "name": "shop",
    "pid": 7,
    "app": "shop:app",
    "state": "running",
    "phase": "",
    "generation": 2,
    "version": "1.2",
    "python": "3.11.9",
    "uptime_s": 7300.0,
    "listeners": ["http://127.0.0.1:8000"],
    "workers": {"target": 1, "ready": 1, "total": 1},
    "requests": 1234,
    "requests_per_s": 25.0,
    "in_flight": 2,
    "connections": 6,
    "statuses": {"2xx": 1200},
    "p50_s": None,
    "p99_s": None,
    "last_reload": None,
    "directory": "/srv/shop",
}
WORKER = {
    "slot": 1,
    "pid": 4711,
    "generation": 2,
    "state": "ready",
    "age_s": 75.0,
    "last_exit": "no_heartbeat",
}


def answer() -> dict[str, Any]:
    """A server's answer, with a secret in each part that may have one."""
    return {
        "facts": facts({"SERVO_STATSD_HOST": "udp://u:hunter2@stats", "LANG": "C"}),
        "status": STATUS,
        "settings": [
            {"name": "workers", "value": "1", "unit": "", "source": "flag --workers"},
            {"name": "timeout", "value": "30", "unit": "seconds", "source": "default"},
            {"name": "bind", "value": "x://a:hunter2@b", "unit": "", "source": "servo.toml:3"},
        ],
        "workers": [WORKER],
        "events": [
            {"time": 1.0, "name": "exited", "text": "worker 1 ended: token=hunter2\nmore"},
        ],
        "logs": [
            {
                "time": 1.0,
                "level": "error",
                "slot": 1,
                "pid": 1,
                "text": "password='hunter2'\x1b[2J",
            },
            {"time": 2.0, "level": "info", "pid": 1, "text": "-----BEGIN PRIVATE KEY-----"},
            {"time": 2.0, "level": "info", "pid": 1, "text": "hunter2"},
            {"time": 2.0, "level": "info", "pid": 1, "text": "-----END PRIVATE KEY----- `````"},
        ],
    }


def test_the_sections() -> None:
    text = report.as_markdown(answer(), "")
    for line in (
        "## Status",
        "## Versions and system",
        "workers  1                flag --workers",
        "bind     x://[removed]@b  servo.toml:3",
        "1 other settings have their defaults.",
        "no heartbeat",
        "## Log",
        "LANG=C",
        "``````text\n1970",  # a line of the log has five backticks
    ):
        assert line in text
    assert "\x1b" not in text


def test_no_secret_is_in_it() -> None:
    assert "hunter2" in str(answer())
    for text in (report.as_markdown(answer(), ""), json.dumps(report.as_json(answer(), ""))):
        assert REMOVED in text
    assert "hunter2" not in report.as_markdown(answer(), "")


def test_a_server_that_does_not_answer() -> None:
    text = report.as_markdown({}, "it is stopped")
    assert "servoctl could not ask the server: it is stopped" in text
    assert "## Limits" in text
    values = report.as_json({}, "it is stopped")
    assert (values["error"], "status" in values) == ("it is stopped", False)
