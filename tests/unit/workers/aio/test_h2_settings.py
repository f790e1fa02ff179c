"""The HTTP/2 settings of a worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from servo.settings.sources import Settings
from servo.workers.aio.h2_settings import H2Settings, h2_settings

TLS: Any = object()


def settings(**values: Any) -> Settings:
    return Settings(values, {})


@pytest.mark.parametrize(
    ("mode", "prior_knowledge", "upgrade"),
    [
        ("off", False, False),
        ("prior-knowledge", True, False),
        ("upgrade", False, True),
        ("both", True, True),
    ],
)
def test_cleartext_modes(mode: str, prior_knowledge: bool, upgrade: bool) -> None:
    found = H2Settings(settings(http2_cleartext=mode))
    assert (found.prior_knowledge, found.upgrade) == (prior_knowledge, upgrade)


def test_limits_are_the_settings() -> None:
    found = H2Settings(
        settings(
            http2_max_concurrent_streams=7,
            http2_initial_window_size=100_000,
            http2_max_frame_size=20_000,
            http2_max_header_list_size=0,
            date_header=False,
        )
    )
    limits = found.limits
    assert (limits.streams, limits.window, limits.frame) == (7, 100_000, 20_000)
    assert limits.header_list == (1 << 31) - 1  # 0: no limit
    assert found.date is False


@pytest.mark.parametrize(("chosen", "agreed"), [("h2", True), ("http/1.1", False), (None, False)])
def test_the_client_chooses(chosen: str | None, agreed: bool) -> None:
    ssl_object = SimpleNamespace(selected_alpn_protocol=lambda: chosen)
    transport: Any = SimpleNamespace(get_extra_info=lambda _name: ssl_object)
    assert H2Settings(settings()).agreed(transport) is agreed


def test_without_tls_it_is_spoken_only_if_so_set() -> None:
    assert h2_settings(settings(), None) is None
    assert h2_settings(settings(), TLS) is not None
    assert h2_settings(settings(http2_cleartext="prior-knowledge"), None) is not None


def test_protocols_that_leave_it_out() -> None:
    assert h2_settings(settings(http_protocols=["h1"]), TLS) is None
    assert h2_settings(settings(http_protocols=["h1", "h2"]), TLS) is not None
