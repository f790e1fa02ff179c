"""Contexts from settings, tried in handshakes that no socket takes part in."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, Files

from servo.errors import ConfigError
from servo.net.tls import TLS, make_tls
from servo.net.tls_facts import TLSFacts, distinguished_name
from servo.net.tls_switch import check_switch, wants_tls
from servo.settings.config_hooks import Hooks, read_hook
from servo.settings.schema import SETTINGS
from servo.settings.sources import Settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Files:
    return authority.issue("good")


def settings(directory: Path, hook: Any = None, **values: Any) -> Settings:
    read = {name: SETTINGS[name].read(value, "test") for name, value in values.items()}
    hooks = Hooks({"ssl_context": read_hook("ssl_context", hook, "test")} if hook else {})
    return Settings({**read, "chdir": str(directory)}, {}, hooks=hooks)


def made(directory: Path, hook: Any = None, **values: Any) -> TLS:
    tls = make_tls(settings(directory, hook, **values))
    assert tls is not None
    return tls


class Ends:
    """A client and a server with nothing but memory between them."""

    def __init__(
        self, tls: TLS, client: ssl.SSLContext, host: str | None, session: Any = None
    ) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = tls.context.wrap_bio(to_server, to_client, server_side=True)
        self.client = client.wrap_bio(to_client, to_server, server_hostname=host, session=session)
        pending = [self.client, self.server]
        for _ in range(10):
            pending = [end for end in pending if not self.shaken(end)]
        assert not pending

    @staticmethod
    def shaken(end: ssl.SSLObject) -> bool:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def say(self, data: bytes = b"hello") -> bytes:
        """The server answers: with TLS 1.3 a session's tickets come before."""
        self.server.write(data)
        return self.client.read()

    def shown(self) -> set[str]:
        """The host names in the certificate that the client was shown."""
        names: Any = self.client.getpeercert()
        return {value for _, value in names["subjectAltName"]}


def test_plain_http_is_what_nobody_asks_otherwise(tmp_path: Path) -> None:
    assert make_tls(settings(tmp_path)) is None


def test_a_handshake(authority: Authority, files: Files) -> None:
    tls = made(authority.directory, certfile=files.cert.name, keyfile=files.key.name)
    tls.offer("h2", "http/1.1")
    client = authority.client_context()
    client.set_alpn_protocols(["http/1.1", "h2"])
    ends = Ends(tls, client, "localhost")
    assert ends.server.version() == "TLSv1.3"
    assert ends.server.selected_alpn_protocol() == "h2"
    assert ends.say() == b"hello"


def test_versions(authority: Authority, files: Files) -> None:
    old, new = authority.client_context(), authority.client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    pair = {"certfile": files.cert, "keyfile": files.key}
    assert Ends(made(authority.directory, **pair), old, "localhost").server.version() == "TLSv1.2"
    strict = made(authority.directory, **pair, tls_minimum_version="1.3")
    assert Ends(strict, new, "localhost").server.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol|alert"):
        Ends(strict, old, "localhost")
    assert made(authority.directory, **pair).context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_ciphers(authority: Authority, files: Files) -> None:
    pair = {"certfile": files.cert, "keyfile": files.key}
    client = authority.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = made(authority.directory, **pair, ciphers="ECDHE-ECDSA-CHACHA20-POLY1305")
    cipher = Ends(tls, client, "localhost").server.cipher()
    assert cipher is not None
    assert cipher[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"
    with pytest.raises(ConfigError, match="ciphers: OpenSSL knows none of 'NONE-SUCH'"):
        made(authority.directory, **pair, ciphers="NONE-SUCH")


def test_the_certificate_of_the_host_that_is_named(authority: Authority, files: Files) -> None:
    one = authority.issue("one", "one.example")
    wild = authority.issue("wild", "*.two.example", "special.two.example")
    special = authority.issue("special", "special.two.example")
    tls = made(
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
    assert Ends(tls, client, "one.example").shown() == {"one.example"}
    assert Ends(tls, client, "a.two.example").shown() == {"*.two.example", "special.two.example"}
    assert Ends(tls, client, "special.two.example").shown() == {"special.two.example"}
    client.check_hostname = False
    for other in ("two.example", "a.b.two.example", "localhost", None):
        assert Ends(tls, client, other).shown() == {"localhost", "127.0.0.1"}, other

    facts = TLSFacts(tls, Ends(tls, client, "one.example").server)
    assert facts.extension["server_cert"].strip() == one.cert.read_text().strip()


def test_client_certificates(authority: Authority, files: Files) -> None:
    person = authority.issue("person", "person@example.org", common_name='Ad"a, #1')
    stranger = Authority(authority.directory, "Other").issue("stranger", "s@example.org")
    pair = {"certfile": files.cert, "keyfile": files.key, "ca_certs": authority.path}
    without, known = authority.client_context(), authority.client_context(person)
    unknown = authority.client_context(stranger)

    optional = made(authority.directory, **pair, cert_reqs="optional")
    facts = TLSFacts(optional, Ends(optional, without, "localhost").server)
    assert facts.environ["SSL_CLIENT_VERIFY"] == "NONE"
    assert facts.extension["client_cert_chain"] == []
    assert facts.extension["client_cert_name"] is None

    required = made(authority.directory, **pair, cert_reqs=2)
    facts = TLSFacts(required, Ends(required, known, "localhost").server)
    assert facts.environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert facts.environ["SSL_CLIENT_CERT"].strip() == person.cert.read_text().strip()
    assert 'CN=Ad\\"a\\, #1' in facts.environ["SSL_CLIENT_S_DN"]
    assert facts.environ["SSL_CLIENT_I_DN"].endswith("O=Test")
    assert facts.extension["client_cert_chain"][0].strip() == person.cert.read_text().strip()
    assert facts.extension["client_cert_name"] == facts.environ["SSL_CLIENT_S_DN"]
    assert facts.extension["client_cert_error"] is None

    for tls, client in [(required, without), (required, unknown), (optional, unknown)]:
        with pytest.raises(ssl.SSLError):
            Ends(tls, client, "localhost").say()


def test_facts(authority: Authority, files: Files) -> None:
    tls = made(authority.directory, certfile=files.cert, keyfile=files.key)
    client = authority.client_context()
    for version, number in [(ssl.TLSVersion.TLSv1_3, 0x0304), (ssl.TLSVersion.TLSv1_2, 0x0303)]:
        client.maximum_version = version
        server = Ends(tls, client, "localhost").server
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


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_also_by_host_name(
    authority: Authority, files: Files, version: ssl.TLSVersion
) -> None:
    one = authority.issue("again", "again.example")
    hosts = {"again.example": {"certfile": str(one.cert), "keyfile": str(one.key)}}
    tls = made(authority.directory, certfile=files.cert, keyfile=files.key, sni_certs=hosts)
    client = authority.client_context()
    client.maximum_version = version
    for host in ("localhost", "again.example"):
        first = Ends(tls, client, host)
        first.say()
        again = Ends(tls, client, host, first.client.session)
        assert again.say() == b"hello"
        assert again.client.session_reused
        other = made(authority.directory, certfile=files.cert, keyfile=files.key, sni_certs=hosts)
        fresh = Ends(other, client, host, first.client.session)
        assert fresh.say() == b"hello"
        assert not fresh.client.session_reused, "another generation has other ticket keys"


def test_the_hook(authority: Authority, files: Files) -> None:
    seen = []

    def hook(config: Any, default_ssl_context_factory: Any) -> ssl.SSLContext:
        seen.append(config.cert_reqs)
        context: ssl.SSLContext = default_ssl_context_factory()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    tls = made(authority.directory, hook, certfile=files.cert, keyfile=files.key)
    assert tls.context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert seen == [ssl.CERT_NONE]
    assert tls.certificate(tls.context) is not None

    def own(config: Any, default_ssl_context_factory: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key)
        return context

    tls = made(authority.directory, own)
    ends = Ends(tls, authority.client_context(), "localhost")
    assert TLSFacts(tls, ends.server).extension["server_cert"] is None


def test_a_hook_that_fails(authority: Authority, files: Files) -> None:
    def wrong(config: Any, factory: Any) -> Any:
        return None

    def raises(config: Any, factory: Any) -> Any:
        raise OSError("no key in the safe")

    def wants(config: Any, factory: Any) -> Any:
        return factory()

    with pytest.raises(ConfigError, match=r"returned None, not an ssl\.SSLContext"):
        made(authority.directory, wrong, certfile=files.cert, keyfile=files.key)
    with pytest.raises(ConfigError, match="no key in the safe"):
        made(authority.directory, raises)
    with pytest.raises(ConfigError, match="set certfile"):
        made(authority.directory, wants)


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
            made(authority.directory, **values)


def test_what_only_deserves_a_warning(authority: Authority) -> None:
    old = authority.issue("old", days=-1, age_days=9)
    tls = made(authority.directory, certfile=old.cert, keyfile=old.key, ca_certs=authority.path)
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
    made(authority.directory, **pair, keyfile_password_file="password")
    made(authority.directory, **pair, keyfile_password="of the file")
    hosts = {
        "too.example": {
            "certfile": str(other.cert),
            "keyfile": str(other.key),
            "keyfile_password_file": "password2",
        }
    }
    made(authority.directory, **pair, keyfile_password="of the file", sni_certs=hosts)
    with pytest.raises(ConfigError, match=r"keyfile_password_file: can't read .*nowhere"):
        made(authority.directory, **pair, keyfile_password_file="nowhere")


def test_a_password_is_nowhere_shown() -> None:
    setting = SETTINGS["keyfile_password"]
    values = Settings({"keyfile_password": "s3cret"}, {"keyfile_password": "environment"})
    assert "s3cret" not in repr(values)
    assert "s3cret" not in setting.show("s3cret")
    with pytest.raises(ConfigError) as caught:
        setting.read(12345, "servo.conf.py:1")
    assert "12345" not in str(caught.value)


def test_a_self_signed_certificate(tmp_path: Path) -> None:
    tls = made(tmp_path, self_signed=True, bind=["0.0.0.0:8000", "dev.example:443"])
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    ends = Ends(tls, client, "localhost")
    facts = TLSFacts(tls, ends.server)
    assert facts.extension["server_cert"] == ssl.DER_cert_to_PEM_cert(
        ends.client.getpeercert(binary_form=True) or b""
    )
    assert "development only" in tls.warnings[0]


def test_a_reload_neither_turns_tls_on_nor_off(tmp_path: Path) -> None:
    plain, secure = settings(tmp_path), settings(tmp_path, certfile="x.pem")
    check_switch(plain, plain)
    check_switch(secure, settings(tmp_path, self_signed=True))
    with pytest.raises(ConfigError, match="can't turn TLS off"):
        check_switch(secure, plain)
    with pytest.raises(ConfigError, match="can't turn TLS on"):
        check_switch(plain, secure)


def test_whoever_names_one_file_wants_tls(tmp_path: Path) -> None:
    assert not wants_tls(settings(tmp_path, ca_certs="ca.pem", ciphers="HIGH"))
    for values in ({"certfile": "a"}, {"keyfile": "a"}, {"sni_certs": {"a.b": "c"}}):
        assert wants_tls(settings(tmp_path, **values))


def test_host_names_are_read_as_clients_send_them() -> None:
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


def test_whether_clients_must_show_a_certificate() -> None:
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
