"""Whether clients must present a certificate, and the certificates of further host names."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from servo.errors import ConfigError
from servo.settings.schema import SETTINGS

CERT_REQS, SNI_CERTS = SETTINGS["cert_reqs"], SETTINGS["sni_certs"]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("none", ssl.CERT_NONE),
        ("Optional", ssl.CERT_OPTIONAL),
        ("CERT_REQUIRED", ssl.CERT_REQUIRED),
        ("2", ssl.CERT_REQUIRED),
        (1, ssl.CERT_OPTIONAL),
        (ssl.CERT_REQUIRED, ssl.CERT_REQUIRED),
    ],
)
def test_cert_reqs(value: object, number: int) -> None:
    read = CERT_REQS.read(value, "a test")
    assert (read, type(read)) == (number, int)


@pytest.mark.parametrize("value", ["sometimes", "3", 3, -1, True, 1.0])
def test_invalid_cert_reqs(value: object) -> None:
    with pytest.raises(ConfigError, match="expected none, optional or required"):
        CERT_REQS.read(value, "a test")


def test_cert_reqs_are_shown_by_name() -> None:
    assert [CERT_REQS.show(number) for number in range(3)] == ["none", "optional", "required"]


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("example.org", "example.org"),
        (" Example.ORG. ", "example.org"),
        ("*.Example.org", "*.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
    ],
)
def test_a_host_name_has_the_form_of_sni(given: str, host: str) -> None:
    assert SNI_CERTS.read({given: "cert.pem"}, "a test") == {host: {"certfile": "cert.pem"}}


@pytest.mark.parametrize(
    "host", ["", ".", "*", "*.", "a.*.org", "**.org", "a b", "a/b", "a:443", 3]
)
def test_an_invalid_host_name(host: object) -> None:
    with pytest.raises(ConfigError, match=r"sni_certs: .* is not valid \(a test\)"):
        SNI_CERTS.read({host: "cert.pem"}, "a test")


def test_the_files_of_a_host() -> None:
    files = {"certfile": "cert.pem", "keyfile": Path("key.pem"), "keyfile_password_file": None}
    read = SNI_CERTS.read({"example.org": files}, "a test")
    assert read == {"example.org": {"certfile": "cert.pem", "keyfile": "key.pem"}}
    text = '{"example.org": {"certfile": "cert.pem"}}'
    assert SNI_CERTS.read(text, "a test") == {"example.org": {"certfile": "cert.pem"}}


@pytest.mark.parametrize(
    "files",
    [{}, {"keyfile": "key.pem"}, {"certfile": "c", "password": "p"}, "", 3, {"certfile": 3}],
)
def test_invalid_files_of_a_host(files: object) -> None:
    with pytest.raises(ConfigError, match=r"sni_certs: .* is not valid \(a test\)"):
        SNI_CERTS.read({"example.org": files}, "a test")
