"""Whether the settings ask for TLS, and reloads that would change that."""

from __future__ import annotations

from pathlib import Path

import pytest
from tls_pair import tls_settings

from servo.errors import ConfigError
from servo.net.tls_switch import check_switch, wants_tls


def test_a_reload_neither_turns_tls_on_nor_off(tmp_path: Path) -> None:
    plain, secure = tls_settings(tmp_path), tls_settings(tmp_path, certfile="x.pem")
    check_switch(plain, plain)
    check_switch(secure, tls_settings(tmp_path, self_signed=True))
    with pytest.raises(ConfigError, match="can't turn TLS off"):
        check_switch(secure, plain)
    with pytest.raises(ConfigError, match="can't turn TLS on"):
        check_switch(plain, secure)


def test_any_setting_of_a_certificate_asks_for_tls(tmp_path: Path) -> None:
    assert not wants_tls(tls_settings(tmp_path, ca_certs="ca.pem", ciphers="HIGH"))
    for values in ({"certfile": "a"}, {"keyfile": "a"}, {"sni_certs": {"a.b": "c"}}):
        assert wants_tls(tls_settings(tmp_path, **values))
