"""Tools of `servoctl` for operators against real servers: the report for a bug."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from integration.server import APPS, DEADLINE_S, Server, environment, wait_for
from integration.turmoil import connect

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"


def servoctl(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "servo.cli.ctl", "--pid", str(server.pid), *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def ctl(server: Server, *arguments: str) -> Any:
    """The JSON of a command that has to succeed."""
    result = servoctl(server, *arguments, "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return lines[0] if len(lines) == 1 else lines


# --- report -----------------------------------------------------------------------------------

# The end of each secret below; no encoding changes it.
PARTS = ("4f1c", "8a2e", "0b7d", "51c3", "93d0", "77aa", "2e6f", "AKIA", "6d1b", "c80e")
LEAKY = """\
import logging
import os

log = logging.getLogger("gunicorn.error")


def app(environ, start_response):
    log.warning("connecting to %s", os.environ["DATABASE_URL"])
    log.warning("all of it: %r", dict(os.environ))
    log.warning("the key: %s, and from --env: %s", os.environ["SHOP_SECRET"], os.environ["API_KEY"])
    log.warning('{"user": "x", "password": "In-The-Log-51c3"}')
    log.warning("headers: {'Authorization': 'Bearer bearer-93d0'}")
    log.warning("Cookie: a=b; sid=cookie-value-77aa")
    log.warning("GET /reset?code=query-code-2e6f HTTP/1.1")
    log.warning("the bucket refused AKIAIOSFODNN7EXAMPLE")
    try:
        raise RuntimeError("rejected: api_key='exception-key-6d1b'")
    except RuntimeError:
        log.exception("the shop failed at http://u:Pass%2Fword%20of%3Da%26URL-8a2e@shop.example/")
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


def test_a_report_has_no_secret_of_the_server(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    env = {
        "SHOP_SECRET": "Plain-Environment-4f1c",
        "DATABASE_URL": "postgres://shop:Pass/word of=a&URL-8a2e@db.example/shop",
        "SERVO_KEYFILE_PASSWORD": "keyfile-password-c80e",
    }
    server = serve("leaky:app", "-w", "2", "--env", "API_KEY=raw-env-0b7d", env=env, ready=2)
    requests.get(f"{server.url}/", timeout=30)
    wait_for(lambda: "the shop failed" in json.dumps(ctl(server, "logs")))
    # The log itself has all of them, except for the one that the server hides from the app.
    logged = json.dumps(ctl(server, "logs"))
    assert [part for part in PARTS if part not in logged] == ["c80e"]
    plain = servoctl(server, "report")
    assert plain.returncode == 0, plain.stderr
    for text in (plain.stdout, json.dumps(ctl(server, "report"))):
        assert "connecting to" in text
        assert [part for part in PARTS if part in text] == []
    # The arbiter itself removes the secrets that it knows, because users with `:read` see its
    # answer.
    with connect(server) as control:
        answer = json.dumps(control.request("report"))
    assert "connecting to" in answer
    assert [part for part in ("4f1c", "8a2e", "0b7d", "c80e") if part in answer] == []


def test_a_report_says_what_runs(serve: Serve) -> None:
    server = serve(WSGI, "-w", "2", "--name", "shop", ready=2, env={"PYTHONHASHSEED": "7"})
    text = servoctl(server, "report", "--lines", "5").stdout
    for line in (
        "# Report by servoctl",
        "name          shop",
        "flag --workers",
        "PYTHONHASHSEED=7",
    ):
        assert line in text
    values = ctl(server, "report")
    assert values["facts"]["executable"] == sys.executable
    assert sorted(row["pid"] for row in values["workers"]) == server.ready_pids()
    assert values["workers"][0]["pss_bytes"] > 0
    assert len(values["events"]) > 0
    server.stop()
    gone = servoctl(server, "report")
    assert gone.returncode == 3
    assert "servoctl could not ask the server" in gone.stdout
    assert "## Limits" in gone.stdout
