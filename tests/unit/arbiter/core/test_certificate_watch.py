"""When to read changed certificate files again."""

from __future__ import annotations

from servo.arbiter.core.certificate_watch import GRACE_S, CertificateWatch

OLD = {"cert": (1,), "key": (1,)}
HALF = {"cert": (2,), "key": (1,)}
NEW = {"cert": (2,), "key": (2,)}


def test_nothing_is_due_before_the_interval_has_passed() -> None:
    watch = CertificateWatch(15, OLD, 100)
    assert not watch.is_due(114)
    assert watch.is_due(115)
    assert not watch.look(OLD, 115)
    assert not watch.is_due(129)
    assert watch.is_due(130)


def test_changed_files_are_read_when_two_looks_have_found_them_the_same() -> None:
    watch = CertificateWatch(15, OLD, 100)
    assert not watch.look(HALF, 115)
    assert watch.is_due(116)
    assert not watch.look(NEW, 116)
    assert watch.look(NEW, 117)
    watch.used()
    assert not watch.look(NEW, 118)
    assert not watch.is_due(119)


def test_half_replaced_files_are_an_error_only_after_a_while() -> None:
    watch = CertificateWatch(15, OLD, 100)
    watch.look(HALF, 115)
    assert watch.look(HALF, 116)
    assert not watch.failed(116)
    assert watch.is_due(117)
    assert not watch.look(NEW, 117)
    assert watch.look(NEW, 118)
    watch.used()
    assert not watch.look(NEW, 119)


def test_an_error_is_one_for_each_change() -> None:
    watch = CertificateWatch(15, OLD, 100)
    watch.look(HALF, 115)
    assert watch.look(HALF, 116)
    assert not watch.failed(115 + GRACE_S - 1)
    assert watch.look(HALF, 115 + GRACE_S)
    assert watch.failed(115 + GRACE_S)
    assert not watch.look(HALF, 130)
    assert not watch.is_due(131)
    watch.look(NEW, 145)
    assert watch.look(NEW, 146)
    assert not watch.failed(146)
    assert watch.failed(145 + GRACE_S)


def test_a_change_that_is_taken_back_is_none() -> None:
    watch = CertificateWatch(15, OLD, 100)
    assert not watch.look(HALF, 115)
    assert not watch.look(OLD, 116)
    assert not watch.is_due(117)
