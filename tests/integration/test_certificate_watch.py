"""Certificates that change on disk are used without a signal (`certfile_watch`)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from authority import Authority, Files

from integration.conftest import Serve
from integration.server import APPS, Server, assert_no_noise, wait_for
from integration.test_process import command_for_everybody, needs_root
from integration.tls_client import CLASSES, Connection, TLSLoad

pytestmark = pytest.mark.slow

KINDS = {
    **CLASSES,
    "preload": ("tls_asgi", ("-k", "async", "--preload")),
    "asyncio": ("tls_asgi", ("-k", "async", "--loop", "asyncio")),
}
WATCH = ("--certfile-watch", "1")


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[str, ...]:
    module, flags = KINDS[str(request.param)]
    return (f"{APPS / module}.py:app", *flags)


def serial(connection: Connection) -> str:
    certificate = connection.socket.getpeercert()
    assert certificate
    return str(certificate["serialNumber"])


def wait_serial_everywhere(server: Server, authority: Authority, workers: set[int]) -> str:
    """Until each worker shows one certificate to new connections; its serial number."""
    context = authority.client_context()

    def same() -> str:
        shown: dict[int, str] = {}
        # Kept open, so that the workers with fewer connections take the next.
        kept = []
        try:
            while set(shown) != workers:
                kept.append(Connection(server.port, context))
                shown[kept[-1].facts()["pid"]] = serial(kept[-1])
        finally:
            for connection in kept:
                connection.socket.close()
        return serials.pop() if len(serials := set(shown.values())) == 1 else ""

    return wait_for(same, "one certificate at all workers")


def wait_other_serial(server: Server, authority: Authority, workers: set[int], old: str) -> str:
    return wait_for(
        lambda: (new := wait_serial_everywhere(server, authority, workers)) != old and new,
        "a new certificate",
    )


def test_a_new_certificate_without_a_signal(
    serve: Serve, authority: Authority, files: Files, kind: tuple[str, ...]
) -> None:
    server = serve(*kind, *files.flags, *WATCH, "-w", "2", ready=2)
    workers = set(server.wait_workers(2))
    context = authority.client_context()
    old = wait_serial_everywhere(server, authority, workers)
    with Connection(server.port, context) as kept, TLSLoad(server.port, context) as load:
        pid = kept.facts()["pid"]
        load.wait_answers(20)
        for _ in range(2):
            authority.issue("server")  # into the same files
            old = wait_other_serial(server, authority, workers, old)
            load.wait_answers(20)
        assert kept.facts()["pid"] == pid
    assert load.failures == []
    assert set(server.wait_workers(2)) == workers
    assert_no_noise(server)

    # The arbiter has it, too, so that a successor does not start with the old one.
    victim = workers.pop()
    server.signal_worker(victim, signal.SIGKILL)
    workers = set(server.wait_replaced([victim], 2))
    assert wait_serial_everywhere(server, authority, workers) == old


def test_links_that_are_switched_one_after_the_other(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    """As certbot does: names that are symbolic links, to which it gives new targets in turn."""
    one, two = authority.issue("one"), authority.issue("two")
    live = Files(tmp_path / "fullchain.pem", tmp_path / "privkey.pem")
    live.cert.symlink_to(one.cert)
    live.key.symlink_to(one.key)
    app = f"{APPS / 'tls_wsgi'}.py:app"
    server = serve(app, "-k", "sync", *live.flags, *WATCH)
    workers = set(server.wait_workers(1))
    old = wait_serial_everywhere(server, authority, workers)
    for link, target in ((live.cert, two.cert), (live.key, two.key)):
        new = tmp_path / "new-link"
        new.symlink_to(target)
        new.replace(link)
        assert wait_serial_everywhere(server, authority, workers)
    wait_other_serial(server, authority, workers, old)
    assert_no_noise(server)


def test_files_that_cant_be_used_are_left(
    serve: Serve, authority: Authority, files: Files, kind: tuple[str, ...]
) -> None:
    server = serve(*kind, *files.flags, *WATCH)
    workers = set(server.wait_workers(1))
    old = wait_serial_everywhere(server, authority, workers)
    good = files.cert.read_bytes()
    for spoil, says in (
        (lambda: files.cert.write_bytes(good[:300]), r"server\.pem contains no certificate"),
        (files.cert.unlink, r"can't read .*server\.pem: No such file"),
        (
            lambda: files.cert.write_bytes(authority.issue("other").cert.read_bytes()),
            r"the key in .*server\.key does not belong to the certificate",
        ),
    ):
        mark = server.mark()
        spoil()
        server.wait_log(rf"{says}.*stays in use$", mark)
        assert wait_serial_everywhere(server, authority, workers) == old
    authority.issue("server")
    wait_other_serial(server, authority, workers, old)
    assert set(server.wait_workers(1)) == workers
    assert server.log().count("[ERROR]") == 3, "one line for each change"


@needs_root
def test_a_worker_that_may_not_read_the_key(serve: Serve, open_directory: Path) -> None:
    authority = Authority(open_directory)
    files = authority.issue("server")
    files.key.chmod(0o600)
    (open_directory / "app.py").write_text((APPS / "tls_wsgi.py").read_text())
    server = serve(
        *("app:app", "-k", "sync", *files.flags, *WATCH, "--user", "nobody", "-w", "2"),
        ready=2,
        cwd=open_directory,
        env={"PYTHONPATH": str(open_directory)},
        command=command_for_everybody(open_directory),
    )
    workers = set(server.wait_workers(2))
    old = wait_serial_everywhere(server, authority, workers)
    authority.issue("server")
    files.key.chmod(0o600)
    wait_other_serial(server, authority, workers, old)
    assert_no_noise(server)


def test_authorities_of_clients_that_change(
    serve: Serve, authority: Authority, files: Files, tmp_path: Path, kind: tuple[str, ...]
) -> None:
    authorities = tmp_path / "clients.pem"
    authorities.write_bytes(authority.path.read_bytes())
    server = serve(
        *kind, *files.flags, *WATCH, "--ca-certs", str(authorities), "--cert-reqs", "required"
    )
    other = Authority(tmp_path, "Other")
    context = authority.client_context(authority.issue("person"))
    stranger = authority.client_context(other.issue("stranger"))

    def is_served(client: object) -> bool:
        try:
            with Connection(server.port, client) as connection:  # type: ignore[arg-type]
                return bool(connection.facts())
        except (OSError, ValueError):
            return False

    assert is_served(context)
    assert not is_served(stranger)
    authorities.write_bytes(other.path.read_bytes())
    wait_for(lambda: is_served(stranger), "an authority's clients to be served")
    assert not is_served(context)
