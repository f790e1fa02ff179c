"""The addresses of statsd servers, as gunicorn reads them."""

from __future__ import annotations

import pytest

from servo.settings.statsd_address import StatsdAddress, split_statsd_address


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("localhost:9125", ("localhost", 9125)),
        ("localhost", ("localhost", 8125)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:9125", ("::1", 9125)),
        ("[::1]", ("::1", 8125)),
        ("unix:8125", ("unix", 8125)),
        ("unix:///run/statsd.sock", "/run/statsd.sock"),
        ("unix:/run/statsd.sock", "/run/statsd.sock"),
        ("unix:here.sock", "here.sock"),
    ],
)
def test_an_address_is_a_host_with_port_or_a_path(text, means):
    assert split_statsd_address(text) == means
    assert StatsdAddress().from_value(f" {text} ") == text


@pytest.mark.parametrize("text", ["", ":1", "a b", "host:", "host:0", "host:65536", "::1", "unix:"])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        StatsdAddress().from_text(text)
