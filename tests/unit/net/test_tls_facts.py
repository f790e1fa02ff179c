"""The facts of a TLS connection, for ASGI and for WSGI."""

from __future__ import annotations

import ssl

import pytest
from authority import Authority, Files
from tls_pair import TLSPair, make_test_tls

from servo.net.tls_facts import TLSFacts, distinguished_name


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Files:
    return authority.issue("good")


def test_client_certificates(authority: Authority, files: Files) -> None:
    person = authority.issue("person", "person@example.org", common_name='Ad"a, #1')
    stranger = Authority(authority.directory, "Other").issue("stranger", "s@example.org")
    pair = {"certfile": files.cert, "keyfile": files.key, "ca_certs": authority.path}
    without, known = authority.client_context(), authority.client_context(person)
    unknown = authority.client_context(stranger)

    optional = make_test_tls(authority.directory, **pair, cert_reqs="optional")
    facts = TLSFacts(optional, TLSPair(optional, without, "localhost").server)
    assert facts.environ["SSL_CLIENT_VERIFY"] == "NONE"
    assert facts.extension["client_cert_chain"] == []
    assert facts.extension["client_cert_name"] is None

    required = make_test_tls(authority.directory, **pair, cert_reqs=2)
    facts = TLSFacts(required, TLSPair(required, known, "localhost").server)
    assert facts.environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert facts.environ["SSL_CLIENT_CERT"].strip() == person.cert.read_text().strip()
    assert 'CN=Ad\\"a\\, #1' in facts.environ["SSL_CLIENT_S_DN"]
    assert facts.environ["SSL_CLIENT_I_DN"].endswith("O=Test")
    assert facts.extension["client_cert_chain"][0].strip() == person.cert.read_text().strip()
    assert facts.extension["client_cert_name"] == facts.environ["SSL_CLIENT_S_DN"]
    assert facts.extension["client_cert_error"] is None

    for tls, client in [(required, without), (required, unknown), (optional, unknown)]:
        with pytest.raises(ssl.SSLError):
            TLSPair(tls, client, "localhost").send()


def test_facts(authority: Authority, files: Files) -> None:
    tls = make_test_tls(authority.directory, certfile=files.cert, keyfile=files.key)
    client = authority.client_context()
    for version, number in [(ssl.TLSVersion.TLSv1_3, 0x0304), (ssl.TLSVersion.TLSv1_2, 0x0303)]:
        client.maximum_version = version
        server = TLSPair(tls, client, "localhost").server
        facts = TLSFacts(tls, server)
        assert facts.extension["tls_version"] == number
        name, text, _ = server.cipher() or ("", "", 0)
        assert facts.environ["SSL_CIPHER"] == name
        assert facts.environ["SSL_PROTOCOL"] == server.version()
        assert facts.environ["HTTPS"] == "on"
        ids = {c["name"]: c["id"] & 0xFFFF for c in tls.context.get_ciphers()}
        assert facts.extension["cipher_suite"] == ids[name], text
        assert facts.extension["server_cert"].strip() == files.cert.read_text().strip()


def test_names_are_written_as_rfc_4514_has_them() -> None:
    name = (
        (("countryName", "GB"),),
        (("organizationName", "Sue, Grabbit and Runn"),),
        (("organizationalUnitName", "Sales"), ("commonName", "J. Smith")),
        (("emailAddress", "#a b "),),
        (("commonName", " Lučić;<\\>+ "),),
    )
    assert distinguished_name(name) == (
        "CN=\\ Lučić\\;\\<\\\\\\>\\+\\ ,emailAddress=\\#a b\\ ,OU=Sales+CN=J. Smith,"
        "O=Sue\\, Grabbit and Runn,C=GB"
    )
