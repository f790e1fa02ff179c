"""The facts of a bug report: versions, limits, cgroup, environment without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo import __version__
from servo.arbiter.operator import report
from servo.control.redaction import REMOVED
from servo.settings.sources import Settings

FILES = {
    "/proc/self/cgroup": "0::/system.slice/shop.service\n",
    "/sys/fs/cgroup/system.slice/shop.service/memory.max": "536870912\n",
    "/sys/fs/cgroup/system.slice/shop.service/pids.max": "100\n",
    "/etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
}
ENVIRONMENT = {
    "SERVO_WORKERS": "4",
    "SERVO_KEYFILE_PASSWORD": "hunter2",
    "LANG": "C.UTF-8",
    "DATABASE_URL": "postgres://shop:hunter3@db/shop",
    "HOME": "/root",
}


def test_facts() -> None:
    facts = report.facts(ENVIRONMENT, FILES.get)
    assert (facts["servo"], facts["distribution"]) == (__version__, "Debian GNU/Linux 12")
    assert facts["compiled"] in (True, False)
    assert facts["memory_limit"] == 512 << 20
    assert facts["cgroup"] == {
        "path": "/sys/fs/cgroup/system.slice/shop.service",
        "memory.max": "536870912",
        "pids.max": "100",
    }
    assert len(facts["limits"]["open files"]) == 2


def test_only_the_servers_own_variables_are_reported() -> None:
    found = report.facts(ENVIRONMENT, FILES.get)["environment"]
    assert found == {"LANG": "C.UTF-8", "SERVO_KEYFILE_PASSWORD": REMOVED, "SERVO_WORKERS": "4"}


def test_a_system_without_these_files() -> None:
    facts = report.facts({}, lambda _path: None)
    assert (facts["distribution"], facts["memory_limit"]) == ("", None)


def test_versions_of_libraries(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for place, name in [
        (first, "uvloop-1.dist-info"),
        (second, "uvloop-2.dist-info"),
        (second, "Prometheus_Client-0.20.dist-info"),
        (second, "shop-1.dist-info"),
        (second, "uvloop"),
    ]:
        (place / name).mkdir(parents=True)
    paths = [str(first), str(tmp_path / "missing"), str(second)]
    assert report.versions(paths) == {"prometheus-client": "0.20", "uvloop": "1"}


def test_the_secrets_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        {"app": "x:app", "raw_env": ["API_KEY=k3y", "MODE=fast"], "keyfile_password": "w0rd"}, {}
    )
    assert report.known_secrets(settings, ENVIRONMENT) == {"hunter2", "hunter3", "k3y", "w0rd"}
