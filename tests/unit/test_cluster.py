"""The package's own attributes."""

from __future__ import annotations

import os

import pytest

from servo import cluster


def test_a_process_outside_of_a_server_is_worker_1() -> None:
    assert cluster.slot == 1
    assert cluster.pid == os.getpid()


def test_an_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'slots'"):
        _ = cluster.slots


def test_all_public_names_exist() -> None:
    assert all(hasattr(cluster, name) for name in cluster.__all__)
