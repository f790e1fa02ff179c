"""nginx beside the Python servers: a proxy in front of them, and a measure of what C alone costs.

As a server, it has the same certificate and the same OpenSSL, and no application: it shows how much
of a request's cost no Python server can avoid.
"""

from __future__ import annotations

import shutil

from servers import CERTIFICATE, PORT, PROXY_PORT, WORK, Setup, UnableError

SHARED = """\
daemon off;
pid {work}/{name}.pid;
error_log stderr warn;
worker_processes {workers};
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type text/plain;
    # By default, it closes a connection after 1,000 requests.
    keepalive_requests 1000000000;
    client_body_temp_path {work}/nginx-body;
    proxy_temp_path {work}/nginx-proxy;
    fastcgi_temp_path {work}/nginx-other;
    uwsgi_temp_path {work}/nginx-other;
    scgi_temp_path {work}/nginx-other;
{http}
}}
"""
SERVER = """\
    server {{
        listen 127.0.0.1:{port}{tls};
        location / {{ return 200 "Hello, world!"; }}
    }}"""
# After the port of `listen`. Without TLS, there may be no certificate to load.
TLS = """\
 ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        ssl_protocols TLSv1.2 TLSv1.3"""
# Connections to the server stay open, as its documentation recommends.
PROXY = """\
    upstream app {{
        server 127.0.0.1:{port};
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{proxy_port};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}"""


def server_command(setup: Setup) -> list[str]:
    """The command of a server that answers "Hello, world!" by itself."""
    tls = TLS.format(certificate=CERTIFICATE) if setup.tls else ""
    return command("nginx", SERVER.format(port=PORT, tls=tls), setup.workers)


def proxy_command() -> list[str]:
    """The command of a proxy on PROXY_PORT with one worker, in front of the server on PORT."""
    return command("nginx-proxy", PROXY.format(port=PORT, proxy_port=PROXY_PORT), 1)


def command(name: str, http: str, workers: int) -> list[str]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise UnableError("nginx is not here (Debian: apt-get install nginx)")
    path = WORK / f"{name}.conf"
    path.write_text(SHARED.format(work=WORK, name=name, workers=workers, http=http))
    return [program, "-p", str(WORK), "-c", str(path)]
