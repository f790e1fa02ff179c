"""The keep-alive policy: when a worker closes connections after each response."""

from __future__ import annotations

from servo.workers.accept.keepalive_policy import (
    CLOSE_FOR_NS,
    HANDSHAKE_NS,
    SLOW_REQUEST_NS,
    TLS_SLOW_REQUEST_NS,
    KeepalivePolicy,
)

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


def after_first_second(tls: bool = False) -> KeepalivePolicy:
    """The policy of a worker that served nothing in its first second."""
    policy = KeepalivePolicy(tls)
    assert not policy.closes(0, 0, 0, HOUR)
    return policy


def test_quick_requests_keep_connections() -> None:
    policy = after_first_second()
    assert not policy.closes(1000, 0, 1000 * SLOW_REQUEST_NS, HOUR + SECOND)
    assert not policy.closes(1000, 0, 1000 * SLOW_REQUEST_NS, HOUR + 2 * SECOND)


def test_slow_ones_close_them_for_a_while() -> None:
    policy = after_first_second()
    assert policy.closes(100, 0, 101 * SLOW_REQUEST_NS, HOUR + SECOND)
    assert policy.closes(500, 0, 102 * SLOW_REQUEST_NS, HOUR + CLOSE_FOR_NS)
    assert not policy.closes(500, 0, 102 * SLOW_REQUEST_NS, HOUR + CLOSE_FOR_NS + SECOND)


def test_one_long_request_among_many_counts_by_its_time() -> None:
    policy = after_first_second()
    assert policy.closes(101, 0, 102 * SLOW_REQUEST_NS, HOUR + SECOND)


def test_a_slow_request_now_and_then_does_not() -> None:
    """Few others wait for it, and a new connection may take a distant client longer."""
    policy = after_first_second()
    for second in range(1, 100):
        # 40 ms a second.
        assert not policy.closes(second, 0, second * 40 * SLOW_REQUEST_NS, HOUR + second * SECOND)


def test_the_first_second_is_ignored() -> None:
    """Its figures include the start of the worker."""
    assert not KeepalivePolicy().closes(1, 0, 100 * SLOW_REQUEST_NS, HOUR)


def test_over_tls_new_connections_cost_more() -> None:
    policy = after_first_second(tls=True)
    assert not policy.closes(100, 0, 100 * TLS_SLOW_REQUEST_NS, HOUR + SECOND)
    assert policy.closes(200, 0, 201 * TLS_SLOW_REQUEST_NS, HOUR + 2 * SECOND)


def test_handshakes_are_no_reason_for_more_of_them() -> None:
    policy = after_first_second(tls=True)
    busy = 100 * (TLS_SLOW_REQUEST_NS + HANDSHAKE_NS)
    assert not policy.closes(100, 100, busy, HOUR + SECOND)
