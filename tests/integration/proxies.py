"""nginx and HAProxy as processes of a test, with the configurations of the examples."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from integration.server import REPOSITORY, environment, free_port, wait_for

_PATH = os.environ.get("PATH", "") + ":/usr/sbin"
NGINX = shutil.which("nginx", path=_PATH)
HAPROXY = shutil.which("haproxy", path=_PATH)
OPENSSL = shutil.which("openssl", path=_PATH)


@dataclass
class Proxy:
    """A running proxy. port: plain HTTP; tls_port: HTTPS with a certificate of its own making."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    tls_port: int
    quit_signal: int = signal.SIGTERM

    def wait_ready(self) -> Proxy:
        def listens() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", self.port)) == 0

        wait_for(listens, "a listening proxy")
        return self

    def stop(self) -> None:
        self.process.send_signal(self.quit_signal)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)
            raise


def certificate(directory: Path) -> Path:
    """A key and a self-signed certificate in one file."""
    key, cert, both = directory / "key.pem", directory / "cert.pem", directory / "both.pem"
    command = [str(OPENSSL), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    both.write_text(cert.read_text() + key.read_text())
    return both


def start_nginx(directory: Path, upstream: str, extra: str = "", location: str = "") -> Proxy:
    """nginx by examples/nginx.conf.

    upstream  `unix:PATH` or HOST:PORT
    extra     more lines for its location
    location  all lines of the location, in place of the example's
    """
    port, tls_port = free_port(), free_port()
    pem = certificate(directory)
    text = (REPOSITORY / "examples" / "nginx.conf").read_text()
    text = text.replace("unix:/run/servo/app.sock", upstream)
    tls = f"listen 127.0.0.1:{tls_port} ssl; ssl_certificate {pem}; ssl_certificate_key {pem};"
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port}; {tls}")
    text = text.replace("location / {", f"location / {{\n {extra}")
    if location:
        text = re.sub(r"(?s)location / \{.*?\n        \}", f"location / {{ {location} }}", text)
    temporary = " ".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {", f"http {{\n    access_log off; {temporary}")
    # As root, nginx's workers would be another user's, who can't enter pytest's directory.
    user = "user root;\n" if os.geteuid() == 0 else ""
    config = directory / "nginx.conf"
    config.write_text(f"{user}daemon off;\npid {directory}/nginx.pid;\nerror_log stderr;\n{text}")
    command = [str(NGINX), "-p", str(directory), "-c", str(config), "-e", "stderr"]
    return _start(command, directory / "nginx.log", port, tls_port, signal.SIGQUIT)


def start_haproxy(directory: Path, server: str) -> Proxy:
    """HAProxy by examples/haproxy.cfg. server: its `server` line's address and options."""
    port, tls_port = free_port(), free_port()
    pem = certificate(directory)
    text = (REPOSITORY / "examples" / "haproxy.cfg").read_text()
    tls = f"bind 127.0.0.1:{tls_port} ssl crt {pem}"
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}\n    {tls}")
    text = re.sub(r"(?m)^    server servo .*$", f"    server servo {server}", text)
    config = directory / "haproxy.cfg"
    config.write_text(text)
    command = [str(HAPROXY), "-db", "-q", "-f", str(config)]
    return _start(command, directory / "haproxy.log", port, tls_port, signal.SIGTERM)


def _start(command: list[str], log: Path, port: int, tls_port: int, quit_signal: int) -> Proxy:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Proxy(process, log, port, tls_port, quit_signal).wait_ready()
