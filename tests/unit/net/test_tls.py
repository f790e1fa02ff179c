"""TLS contexts from settings, tried in handshakes in memory."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, Files
from tls_pair import TLSPair, make_test_tls, tls_settings

from servo.errors import ConfigError
from servo.net.certificate_files import CertificateFiles
from servo.net.tls import TLS, make_tls
from servo.net.tls_facts import TLSFacts
from servo.settings.schema import SETTINGS
from servo.settings.sources import Settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Files:
    return authority.issue("good")


def test_there_is_no_tls_by_default(tmp_path: Path) -> None:
    assert make_tls(tls_settings(tmp_path)) is None


def test_a_handshake(authority: Authority, files: Files) -> None:
    tls = make_test_tls(authority.directory, certfile=files.cert.name, keyfile=files.key.name)
    tls.offer("h2", "http/1.1")
    client = authority.client_context()
    client.set_alpn_protocols(["http/1.1", "h2"])
    ends = TLSPair(tls, client, "localhost")
    assert ends.server.version() == "TLSv1.3"
    assert ends.server.selected_alpn_protocol() == "h2"
    assert ends.send() == b"hello"


def test_versions(authority: Authority, files: Files) -> None:
    old, new = authority.client_context(), authority.client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    pair = {"certfile": files.cert, "keyfile": files.key}
    assert (
        TLSPair(make_test_tls(authority.directory, **pair), old, "localhost").server.version()
        == "TLSv1.2"
    )
    strict = make_test_tls(authority.directory, **pair, tls_minimum_version="1.3")
    assert TLSPair(strict, new, "localhost").server.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol|alert"):
        TLSPair(strict, old, "localhost")
    assert (
        make_test_tls(authority.directory, **pair).context.minimum_version == ssl.TLSVersion.TLSv1_2
    )


def test_ciphers(authority: Authority, files: Files) -> None:
    pair = {"certfile": files.cert, "keyfile": files.key}
    client = authority.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = make_test_tls(authority.directory, **pair, ciphers="ECDHE-ECDSA-CHACHA20-POLY1305")
    cipher = TLSPair(tls, client, "localhost").server.cipher()
    assert cipher is not None
    assert cipher[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"
    with pytest.raises(ConfigError, match="ciphers: OpenSSL knows none of 'NONE-SUCH'"):
        make_test_tls(authority.directory, **pair, ciphers="NONE-SUCH")


def test_the_certificate_of_the_host_that_is_named(authority: Authority, files: Files) -> None:
    one = authority.issue("one", "one.example")
    wild = authority.issue("wild", "*.two.example", "special.two.example")
    special = authority.issue("special", "special.two.example")
    tls = make_test_tls(
        authority.directory,
        certfile=files.cert,
        keyfile=files.key,
        sni_certs={
            "ONE.example.": {"certfile": str(one.cert), "keyfile": str(one.key)},
            "*.two.example": {"certfile": str(wild.cert), "keyfile": str(wild.key)},
            "special.two.example": {"certfile": str(special.cert), "keyfile": str(special.key)},
        },
    )
    client = authority.client_context()
    assert TLSPair(tls, client, "one.example").host_names() == {"one.example"}
    assert TLSPair(tls, client, "a.two.example").host_names() == {
        "*.two.example",
        "special.two.example",
    }
    assert TLSPair(tls, client, "special.two.example").host_names() == {"special.two.example"}
    client.check_hostname = False
    for other in ("two.example", "a.b.two.example", "localhost", None):
        assert TLSPair(tls, client, other).host_names() == {"localhost", "127.0.0.1"}, other

    facts = TLSFacts(tls, TLSPair(tls, client, "one.example").server)
    assert facts.extension["server_cert"].strip() == one.cert.read_text().strip()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_also_by_host_name(
    authority: Authority, files: Files, version: ssl.TLSVersion
) -> None:
    one = authority.issue("again", "again.example")
    hosts = {"again.example": {"certfile": str(one.cert), "keyfile": str(one.key)}}
    tls = make_test_tls(
        authority.directory, certfile=files.cert, keyfile=files.key, sni_certs=hosts
    )
    client = authority.client_context()
    client.maximum_version = version
    for host in ("localhost", "again.example"):
        first = TLSPair(tls, client, host)
        first.send()
        again = TLSPair(tls, client, host, first.client.session)
        assert again.send() == b"hello"
        assert again.client.session_reused
        other = make_test_tls(
            authority.directory, certfile=files.cert, keyfile=files.key, sni_certs=hosts
        )
        fresh = TLSPair(other, client, host, first.client.session)
        assert fresh.send() == b"hello"
        assert not fresh.client.session_reused, "another generation has other ticket keys"


def test_the_hook(authority: Authority, files: Files) -> None:
    seen = []

    def hook(config: Any, default_ssl_context_factory: Any) -> ssl.SSLContext:
        seen.append(config.cert_reqs)
        context: ssl.SSLContext = default_ssl_context_factory()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    tls = make_test_tls(authority.directory, hook, certfile=files.cert, keyfile=files.key)
    assert tls.context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert seen == [ssl.CERT_NONE]
    assert tls.certificate(tls.context) is not None

    def own(config: Any, default_ssl_context_factory: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key)
        return context

    tls = make_test_tls(authority.directory, own)
    ends = TLSPair(tls, authority.client_context(), "localhost")
    assert TLSFacts(tls, ends.server).extension["server_cert"] is None


def test_a_hook_that_fails(authority: Authority, files: Files) -> None:
    def wrong(config: Any, factory: Any) -> Any:
        return None

    def raises(config: Any, factory: Any) -> Any:
        raise OSError("no key in the safe")

    def wants(config: Any, factory: Any) -> Any:
        return factory()

    with pytest.raises(ConfigError, match=r"returned None, not an ssl\.SSLContext"):
        make_test_tls(authority.directory, wrong, certfile=files.cert, keyfile=files.key)
    with pytest.raises(ConfigError, match="no key in the safe"):
        make_test_tls(authority.directory, raises)
    with pytest.raises(ConfigError, match="set certfile"):
        make_test_tls(authority.directory, wants)


def test_settings_that_contradict(authority: Authority, files: Files) -> None:
    pair = {"certfile": files.cert, "keyfile": files.key}
    for values, words in [
        ({"keyfile": files.key}, "certfile is not"),
        ({"sni_certs": {"a.example": str(files.cert)}}, "needs certfile, too"),
        ({**pair, "self_signed": True}, "can't be combined"),
        ({**pair, "cert_reqs": "required"}, "set ca_certs"),
        ({**pair, "ca_certs": "none.pem", "cert_reqs": 1}, "ca_certs: can't read .*none.pem"),
        ({**pair, "sni_certs": {"a.example": "no.pem"}}, r"sni_certs\['a.example'\]: can't read"),
        ({**pair, "certfile": ""}, "certfile is not"),
    ]:
        with pytest.raises(ConfigError, match=words):
            make_test_tls(authority.directory, **values)


def test_settings_that_only_cause_a_warning(authority: Authority) -> None:
    old = authority.issue("old", days=-1, age_days=9)
    tls = make_test_tls(
        authority.directory, certfile=old.cert, keyfile=old.key, ca_certs=authority.path
    )
    expired, pointless = sorted(tls.warnings, reverse=True)
    assert "expired on" in expired
    assert "old.pem" in expired
    assert "ca_certs has no effect" in pointless


def test_passwords(authority: Authority) -> None:
    locked = authority.issue("locked", password=b"of the file")
    other = authority.issue("locked-too", "too.example", password=b"another")
    (authority.directory / "password").write_bytes(b"of the file\r\nnot this\n")
    (authority.directory / "password2").write_bytes(b"another")
    pair = {"certfile": locked.cert, "keyfile": locked.key}
    make_test_tls(authority.directory, **pair, keyfile_password_file="password")
    make_test_tls(authority.directory, **pair, keyfile_password="of the file")
    hosts = {
        "too.example": {
            "certfile": str(other.cert),
            "keyfile": str(other.key),
            "keyfile_password_file": "password2",
        }
    }
    make_test_tls(authority.directory, **pair, keyfile_password="of the file", sni_certs=hosts)
    with pytest.raises(ConfigError, match=r"keyfile_password_file: can't read .*nowhere"):
        make_test_tls(authority.directory, **pair, keyfile_password_file="nowhere")


def test_a_password_is_nowhere_shown() -> None:
    setting = SETTINGS["keyfile_password"]
    values = Settings({"keyfile_password": "s3cret"}, {"keyfile_password": "environment"})
    assert "s3cret" not in repr(values)
    assert "s3cret" not in setting.show("s3cret")
    with pytest.raises(ConfigError) as caught:
        setting.read(12345, "servo.conf.py:1")
    assert "12345" not in str(caught.value)


def test_a_self_signed_certificate(tmp_path: Path) -> None:
    tls = make_test_tls(tmp_path, self_signed=True, bind=["0.0.0.0:8000", "dev.example:443"])
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    ends = TLSPair(tls, client, "localhost")
    facts = TLSFacts(tls, ends.server)
    assert facts.extension["server_cert"] == ssl.DER_cert_to_PEM_cert(
        ends.client.getpeercert(binary_form=True) or b""
    )
    assert "development only" in tls.warnings[0]


def test_sni_certs() -> None:
    read = SETTINGS["sni_certs"].read
    assert read({"Bücher.Example": "b.pem"}, "t") == {
        "xn--bcher-kva.example": {"certfile": "b.pem"}
    }
    assert read('{"*.example.org": {"certfile": "a", "keyfile": null}}', "t") == {
        "*.example.org": {"certfile": "a"}
    }
    for bad in (
        {"a.*.b": "x"},
        {"*": "x"},
        {"": "x"},
        {"a b": "x"},
        {"a.b": {}},
        {"a.b": {"certfile": "x", "key": "y"}},
        {"a.b": 1},
        [],
    ):
        with pytest.raises(ConfigError, match="sni_certs"):
            read(bad, "t")


def test_cert_reqs() -> None:
    setting = SETTINGS["cert_reqs"]
    for value, number in [
        ("none", 0),
        (" Optional ", 1),
        ("CERT_REQUIRED", 2),
        ("2", 2),
        (1, 1),
        (ssl.CERT_REQUIRED, 2),
    ]:
        assert setting.read(value, "t") == number
        assert setting.read(setting.show(number), "t") == number
    for bad in ("3", 3, True, "maybe", -1, 1.0):
        with pytest.raises(ConfigError):
            setting.read(bad, "t")


# --- renewal ------------------------------------------------------------------------------------


def shown(tls: TLS, client: ssl.SSLContext, host: str | None = "localhost") -> str:
    """The certificate (PEM) that a client is shown."""
    der = TLSPair(tls, client, host).client.getpeercert(binary_form=True)
    assert der
    return ssl.DER_cert_to_PEM_cert(der).strip()


def pem(files: Files) -> str:
    return files.cert.read_text().strip()


def test_renewed_certificates_are_shown_to_new_connections(authority: Authority) -> None:
    old, new = authority.issue("old"), authority.issue("new")
    one, other = authority.issue("old-one", "one.example"), authority.issue("o", "one.example")
    tls = make_test_tls(
        authority.directory,
        certfile=old.cert,
        keyfile=old.key,
        sni_certs={"one.example": {"certfile": str(one.cert), "keyfile": str(one.key)}},
    )
    tls.offer("http/1.1")
    client = authority.client_context()
    client.set_alpn_protocols(["http/1.1"])
    before = TLSPair(tls, client, "localhost")
    tls.renew(
        make_test_tls(
            authority.directory,
            certfile=new.cert,
            keyfile=new.key,
            sni_certs={"one.example": {"certfile": str(other.cert), "keyfile": str(other.key)}},
        )
    )
    assert before.send() == b"hello"
    assert TLSFacts(tls, before.server).extension["server_cert"].strip() == pem(old)
    assert shown(tls, client) == pem(new)
    assert shown(tls, client, "one.example") == pem(other)
    anonymous = authority.client_context()
    anonymous.check_hostname = False
    assert shown(tls, anonymous, None) == pem(new)
    after = TLSPair(tls, client, "localhost")
    assert after.server.selected_alpn_protocol() == "http/1.1"
    assert TLSFacts(tls, after.server).extension["server_cert"].strip() == pem(new)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_after_a_renewal(
    authority: Authority, files: Files, version: ssl.TLSVersion
) -> None:
    tls = make_test_tls(authority.directory, certfile=files.cert, keyfile=files.key)
    client = authority.client_context()
    client.maximum_version = version
    for number in range(3):
        first = TLSPair(tls, client, "localhost")
        first.send()
        new = authority.issue(f"new-{number}")
        tls.renew(make_test_tls(authority.directory, certfile=new.cert, keyfile=new.key))
        assert TLSPair(tls, client, "localhost", first.client.session).client.session_reused
        assert shown(tls, client) == pem(new)


def test_a_handshake_that_has_begun_before_a_renewal_ends_well(authority: Authority) -> None:
    old, new = authority.issue("begun-old"), authority.issue("begun-new")
    tls = make_test_tls(authority.directory, certfile=old.cert, keyfile=old.key)
    client = authority.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = tls.context.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for end in (client_end, server_end):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    tls.renew(make_test_tls(authority.directory, certfile=new.cert, keyfile=new.key))
    with pytest.raises(ssl.SSLWantReadError):
        client_end.do_handshake()
    server_end.do_handshake()
    client_end.do_handshake()
    der = client_end.getpeercert(binary_form=True)
    assert der
    assert ssl.DER_cert_to_PEM_cert(der).strip() == pem(old)


def test_a_renewal_may_change_the_type_of_the_key(authority: Authority) -> None:
    import trustme

    old = authority.issue("elliptic")
    issued = authority.ca.issue_cert("localhost", key_type=trustme.KeyType.RSA)
    rsa = Files(authority.directory / "rsa.pem", authority.directory / "rsa.key")
    rsa.cert.write_bytes(issued.cert_chain_pems[0].bytes())
    rsa.key.write_bytes(issued.private_key_pem.bytes())
    only_elliptic = authority.client_context()
    only_elliptic.maximum_version = ssl.TLSVersion.TLSv1_2
    only_elliptic.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    tls = make_test_tls(authority.directory, certfile=old.cert, keyfile=old.key)
    assert shown(tls, only_elliptic) == pem(old)
    tls.renew(make_test_tls(authority.directory, certfile=rsa.cert, keyfile=rsa.key))
    assert shown(tls, authority.client_context()) == pem(rsa)
    with pytest.raises(ssl.SSLError):
        TLSPair(tls, only_elliptic, "localhost")


def test_authorities_that_changed_end_the_sessions(authority: Authority, files: Files) -> None:
    other = Authority(authority.directory, "Successor")
    pair = {"certfile": files.cert, "keyfile": files.key, "cert_reqs": "required"}
    tls = make_test_tls(authority.directory, **pair, ca_certs=authority.path)
    client = authority.client_context(authority.issue("person"))
    first = TLSPair(tls, client, "localhost")
    first.send()
    assert TLSPair(tls, client, "localhost", first.client.session).client.session_reused
    tls.renew(make_test_tls(authority.directory, **pair, ca_certs=other.path))
    with pytest.raises(ssl.SSLError):
        TLSPair(tls, client, "localhost", first.client.session)
    friend = authority.client_context(other.issue("friend"))
    assert TLSPair(tls, friend, "localhost").send() == b"hello"


def test_contexts_are_made_from_files_in_memory(authority: Authority, files: Files) -> None:
    settings = tls_settings(
        authority.directory, certfile="/nowhere/cert", keyfile="/nowhere/key", self_signed=False
    )
    contents = {
        "/nowhere/cert": files.cert.read_bytes(),
        "/nowhere/key": files.key.read_bytes(),
    }
    tls = make_tls(settings, CertificateFiles(contents))
    assert tls is not None
    assert shown(tls, authority.client_context()) == pem(files)
