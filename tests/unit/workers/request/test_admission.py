"""The steps of every request to the application: their order, and their refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from unit.workers.fakes import GET, Clock, make_meter, make_request

from servo.http.events import Refused
from servo.http.forwarded import TrustedPeers
from servo.settings.sources import Settings
from servo.shared_memory import row_layout
from servo.shared_memory.row_layout import IN_FLIGHT, SHED
from servo.workers.request import admission as admission_module
from servo.workers.request.admission import Admission, Admitted, Peer
from servo.workers.request.hooks import RequestHooks

CLIENT = ("192.0.2.1", 5000)


class World:
    """An admission, and what hooks and the access log get to see of it."""

    def __init__(self, hooks: bool = True, **values: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.lines: list[dict[str, Any]] = []
        settings = Settings({"header_map": "drop", **values}, {})
        access: Any = SimpleNamespace(record=lambda **line: self.lines.append(line))
        self.meter = make_meter(access)
        trusted = TrustedPeers(
            settings.forwarded_allow_ips,
            {b"x-forwarded-proto": b"https"},
            settings.forwarded_fields,
        )
        callbacks: Any = SimpleNamespace(
            pre_request=(lambda _, req: self.calls.append(("pre", req.remote_addr)))
            if hooks
            else None,
            post_request=(
                lambda _, req, environ, resp: self.calls.append(
                    ("post", req.remote_addr, resp.status, resp.sent)
                )
            )
            if hooks
            else None,
        )
        self.trusted = trusted
        self.admission = Admission(settings, self.meter, trusted, RequestHooks(callbacks, None))

    def peer(self, address: tuple[str, int] | None = CLIENT) -> Peer:
        host = address[0] if address else None
        return Peer(address, "http", host in self.trusted)

    def admit(self, *lines: bytes, peer: Peer | None = None) -> Admitted | Refused:
        fields = b"".join(b"\r\n" + line for line in lines)
        request = make_request(GET.replace(b"\r\n\r\n", fields + b"\r\n\r\n"))
        return self.admission.admit(request, peer or self.peer())


def test_an_ordinary_request_is_in_flight_and_its_time_begins(clock: Clock) -> None:
    world = World()
    admitted = world.admit()
    assert isinstance(admitted, Admitted)
    assert admitted.started_ns == clock.ns
    assert admitted.remote == "192.0.2.1"
    assert admitted.client is None
    assert world.meter.row[IN_FLIGHT] == 1
    assert world.calls == []


def test_a_unix_socket_has_no_address() -> None:
    world = World()
    admitted = world.admit(peer=world.peer(None))
    assert isinstance(admitted, Admitted)
    assert admitted.remote == ""


def keeps_alive(world: World, peer: Peer) -> bool:
    admitted = world.admit(peer=peer)
    assert isinstance(admitted, Admitted)
    return admitted.request.keep_alive


def test_the_last_request_of_a_connection_is_counted_to() -> None:
    world = World(keepalive_requests=3)
    peer = world.peer()
    assert [keeps_alive(world, peer) for _ in range(4)] == [True, True, False, False]
    assert peer.requests == 4
    world = World(keepalive_requests=0)
    assert all(keeps_alive(world, peer) for _ in range(100))


def test_too_many_in_flight_are_refused_with_retry_after() -> None:
    world = World(limit_concurrency=2)
    for _ in range(2):
        assert isinstance(world.admit(), Admitted)
    refused = world.admit(b"X_A: 1")
    assert isinstance(refused, Refused)
    assert refused.error.status == 503
    assert world.meter.row[IN_FLIGHT] == 2
    assert world.meter.row[SHED] == 1
    assert [line["status"] for line in world.lines] == [503]
    assert world.calls == []


def test_field_names_with_underscores_are_refused_if_so_set() -> None:
    refused = World(header_map="refuse").admit(b"X_A: 1")
    assert isinstance(refused, Refused)
    assert refused.error.status == 400
    assert isinstance(World(header_map="drop").admit(b"X_A: 1"), Admitted)


def test_limit_concurrency_comes_before_the_fields() -> None:
    world = World(limit_concurrency=1, header_map="refuse")
    world.admit()
    refused = world.admit(b"X_A: 1")
    assert isinstance(refused, Refused)
    assert refused.error.status == 503


def test_a_trusted_proxy_names_the_client() -> None:
    world = World(forwarded_allow_ips=CLIENT[0])
    admitted = world.admit(b"X-Forwarded-For: 203.0.113.9")
    assert isinstance(admitted, Admitted)
    assert admitted.remote == "203.0.113.9"
    assert admitted.client is not None
    other = world.admit(b"X-Forwarded-For: 203.0.113.9", peer=world.peer(("198.51.100.1", 1)))
    assert isinstance(other, Admitted)
    assert other.remote == "198.51.100.1"
    assert other.client is None


def test_a_trusted_proxy_without_such_fields_is_the_client() -> None:
    admitted = World(forwarded_allow_ips=CLIENT[0]).admit()
    assert isinstance(admitted, Admitted)
    assert admitted.client is None
    assert admitted.remote == "192.0.2.1"


def test_fields_that_contradict_each_other_are_refused_counted_and_seen_by_no_hook() -> None:
    world = World(forwarded_allow_ips=CLIENT[0])
    refused = world.admit(b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http")
    assert isinstance(refused, Refused)
    assert refused.error.status == 400
    assert world.meter.row[IN_FLIGHT] == 0
    assert [(line["status"], line["remote"]) for line in world.lines] == [(400, "192.0.2.1")]
    assert world.calls == []


def test_hooks_see_the_client_and_the_response() -> None:
    world = World(forwarded_allow_ips=CLIENT[0])
    admitted = world.admit(b"X-Forwarded-For: 203.0.113.9")
    assert isinstance(admitted, Admitted)
    world.admission.announce(admitted)
    assert world.calls == [("pre", "203.0.113.9")]
    world.admission.answered(admitted, 404, 7, [(b"a", b"b")], {})
    assert world.calls[1:] == [("post", "203.0.113.9", "404 Not Found", 7)]


def test_post_request_is_called_once_and_only_behind_pre_request() -> None:
    world = World()
    admitted = world.admit()
    assert isinstance(admitted, Admitted)
    world.admission.answered(admitted, 200, 0, [], {})
    assert world.calls == []
    world.admission.announce(admitted)
    for _ in range(2):
        world.admission.answered(admitted, 200, 0, [], {})
    assert [call[0] for call in world.calls] == ["pre", "post"]


def test_without_hooks_nothing_is_made_for_them() -> None:
    world = World(hooks=False)
    admitted = world.admit()
    assert isinstance(admitted, Admitted)
    world.admission.announce(admitted)
    assert admitted.announced is None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_peer_is_what_its_connection_says(scheme: str) -> None:
    peer = Peer(CLIENT, scheme, True)
    assert (peer.name, peer.scheme, peer.trusted, peer.requests) == ("192.0.2.1", scheme, True, 0)


# --- the time in queues -------------------------------------------------------------------------

NOW_NS = 1_700_000_000_500_000_000


def queue_times(world: World) -> tuple[int, int]:
    """How many times were counted, and their sum in nanoseconds."""
    row = world.meter.row.tolist()
    return sum(row_layout.queue_times_in(row)), row[row_layout.QUEUE_SUM_NS]


@pytest.fixture
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "time_ns", lambda: NOW_NS)


@pytest.mark.usefixtures("_now")
@pytest.mark.parametrize("name", [b"X-Request-Start", b"x-queue-start"])
def test_a_trusted_proxy_says_how_long_a_request_has_waited(name: bytes) -> None:
    world = World(forwarded_allow_ips=CLIENT[0])
    for _ in range(2):
        assert isinstance(world.admit(name + b": t=1700000000.123"), Admitted)
    assert queue_times(world) == (2, 754_000_000)


@pytest.mark.usefixtures("_now")
@pytest.mark.parametrize("value", [b"soon", b"1", b""])
def test_a_useless_time_is_not_counted(value: bytes) -> None:
    world = World(forwarded_allow_ips=CLIENT[0])
    assert isinstance(world.admit(b"X-Request-Start: " + value), Admitted)
    assert queue_times(world) == (0, 0)


@pytest.mark.usefixtures("_now")
def test_a_client_is_not_believed() -> None:
    world = World(forwarded_allow_ips="198.51.100.1")
    assert isinstance(world.admit(b"X-Request-Start: t=1700000000.123"), Admitted)
    assert queue_times(world) == (0, 0)


@pytest.mark.usefixtures("_now")
def test_a_refused_request_is_not_counted() -> None:
    world = World(forwarded_allow_ips=CLIENT[0])
    lines = (b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http")
    assert isinstance(world.admit(b"X-Request-Start: t=1700000000.1", *lines), Refused)
    assert queue_times(world) == (0, 0)


@pytest.mark.usefixtures("_now")
def test_repeated_fields_are_read_once_unless_they_have_a_time() -> None:
    """H1Connection returns the same `named` for equal fields."""
    world = World(forwarded_allow_ips=CLIENT[0])
    peer = world.peer()
    request = make_request(GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"))
    first, second = (world.admission.admit(request, peer) for _ in range(2))
    assert isinstance(first, Admitted)
    assert isinstance(second, Admitted)
    assert second.client is first.client is peer.client
    assert second.remote == "203.0.113.9"
    peer.forget()
    assert (peer.fields, peer.client) == (None, None)

    start = b"\r\nX-Request-Start: t=1700000000.4\r\n\r\n"
    timed = make_request(GET.replace(b"\r\n\r\n", start))
    for _ in range(3):
        world.admission.admit(timed, peer)
    assert queue_times(world) == (3, 300_000_000)
    assert peer.fields is None
