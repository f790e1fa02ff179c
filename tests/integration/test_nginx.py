"""Behind nginx, with the configuration that the examples show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from integration.conftest import CLASSES
from integration.server import APPS, REPOSITORY, Server, free_port, wait_for

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_behind_nginx(serve: Callable[..., Server], tmp_path: Path, worker_class: str) -> None:
    path, port = tmp_path / "app.sock", free_port()
    module, flags = CLASSES[worker_class]
    server = serve(f"{APPS / module}.py:app", *flags, "-w", "2", "--bind", f"unix:{path}", ready=2)
    config = tmp_path / "nginx.conf"
    text = (REPOSITORY / "examples" / "nginx.conf").read_text()
    text = text.replace("/run/servo/app.sock", str(path)).replace("8080", f"127.0.0.1:{port}")
    text = text.replace(
        "http {", f"http {{\n    access_log off;\n    client_body_temp_path {tmp_path}/b;"
    )
    # As root, nginx's workers would be another user's, who can't enter pytest's directory.
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(f"{user}daemon off;\npid {tmp_path}/nginx.pid;\nerror_log stderr;\n{text}")
    nginx = subprocess.Popen(
        [str(NGINX), "-p", str(tmp_path), "-c", str(config), "-e", "stderr"],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    server.sessions.add(nginx.pid)
    try:
        with httpx.Client(
            trust_env=False, base_url=f"http://127.0.0.1:{port}", timeout=30
        ) as client:

            def served() -> bool:
                assert nginx.poll() is None, nginx.stderr and nginx.stderr.read()
                try:
                    return client.get("/").text == "ok"
                except httpx.ConnectError:
                    return False

            wait_for(served, "an answer through nginx")
            old = server.worker_pids()
            server.signal(signal.SIGHUP)
            for _ in range(200):
                assert client.get("/").text == "ok"
            server.wait_replaced(old)
            body = b"x" * 3_000_000
            assert client.post("/upload", content=body).json()["bytes"] == len(body)
            assert len(client.get("/stream?bytes=3000000").content) == 3_000_000
            if worker_class == "async":
                assert client.get("/describe").json()["client"][0] == "127.0.0.1"
    finally:
        nginx.send_signal(signal.SIGQUIT)
        nginx.communicate(timeout=30)
