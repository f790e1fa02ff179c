"""TLS: certificates, who must show one, and what is spoken."""

from __future__ import annotations

from typing import Any

from servo.settings.setting import Setting
from servo.settings.types import Choice, Input, Switch, Table, Text, ValueType

_TLS = "TLS"
_CERT_REQS = {"none": 0, "optional": 1, "required": 2}


class CertReqs(ValueType):
    """As the numbers of `ssl.CERT_NONE`, `CERT_OPTIONAL` and `CERT_REQUIRED`; in text as words."""

    metavar = "|".join(_CERT_REQS)
    valid = "none, optional or required (or gunicorn's 0, 1, 2)"

    def from_text(self, text: str) -> int:
        word = text.strip().lower().removeprefix("cert_")
        return _CERT_REQS[word] if word in _CERT_REQS else self.from_value(int(word))

    def from_value(self, value: object) -> int:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("not a number")
        if value not in _CERT_REQS.values():
            raise ValueError("out of range")
        return int(value)

    def to_text(self, value: int) -> str:
        return next(word for word, number in _CERT_REQS.items() if number == value)


class HostTable(Table):
    """Host name -> the files for it. A value is a table, or the path of a file that holds both."""

    valid = (
        "a table (in text: a JSON object) from host names such as example.org or *.example.org to "
        '{"certfile": …, "keyfile": …, "keyfile_password_file": …}, or to one path'
    )
    _KEYS = frozenset(("certfile", "keyfile", "keyfile_password_file"))

    def from_value(self, value: object) -> dict[str, Any]:
        table = super().from_value(value)
        return {_host(name): self._files(files) for name, files in table.items()}

    def _files(self, given: object) -> dict[str, str]:
        files = {"certfile": given} if not isinstance(given, dict) else given
        if not files.get("certfile") or not self._KEYS.issuperset(files):
            raise ValueError("not certfile, keyfile and keyfile_password_file")
        return {name: Input().from_value(path) for name, path in files.items() if path is not None}


def _host(name: object) -> str:
    """As clients send it: lower case, and in ASCII (IDNA)."""
    if not isinstance(name, str):
        raise ValueError("not a host name")
    host = name.strip().lower().rstrip(".")
    star, rest = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    if not rest or "*" in rest or set(rest) & set(" /:"):
        raise ValueError("not a host name")
    return star + rest.encode("idna").decode("ascii")


SETTINGS = [
    Setting(
        name="certfile",
        type=Input(),
        default=None,
        nullable=True,
        section=_TLS,
        help="The server's certificate, its issuers after it (PEM); turns TLS on.",
        details="""\
On every address of `bind`. Relative paths start at `chdir`. The arbiter reads the files, so only
its user needs to be able to; it reads them again at each reload. What can't be used ends a start,
and rolls a reload back.""",
    ),
    Setting(
        name="keyfile",
        type=Input(),
        default=None,
        nullable=True,
        section=_TLS,
        help="Its private key (PEM), if `certfile` doesn't hold it.",
    ),
    Setting(
        name="keyfile_password_file",
        type=Input(),
        default=None,
        nullable=True,
        section=_TLS,
        help="A file whose first line is the password of encrypted keys.",
    ),
    Setting(
        name="keyfile_password",
        type=Text(),
        default=None,
        nullable=True,
        secret=True,
        section=_TLS,
        help="The password of encrypted keys.",
    ),
    Setting(
        name="sni_certs",
        type=HostTable(),
        default={},
        section=_TLS,
        help="Certificates for further host names (SNI).",
        details="""\
An exact name goes before a pattern (`*.example.org`, which stands for one label); other clients get
`certfile`. A password that the table doesn't give is that of `keyfile_password` or
`keyfile_password_file`.

```toml
[sni_certs]
"example.org" = { certfile = "org.pem", keyfile = "org.key" }
"*.example.net" = "net-with-key.pem"
```""",
    ),
    Setting(
        name="ca_certs",
        type=Input(),
        default=None,
        nullable=True,
        section=_TLS,
        help="The authorities (PEM) whose client certificates are accepted.",
    ),
    Setting(
        name="cert_reqs",
        type=CertReqs(),
        default=0,
        section=_TLS,
        help="Whether clients must show a certificate.",
        details="""\
`optional` asks for one; one that doesn't verify ends the handshake all the same. Both need
`ca_certs`.""",
    ),
    Setting(
        name="ciphers",
        type=Text(),
        default=None,
        nullable=True,
        section=_TLS,
        help="The ciphers of TLS 1.2, as OpenSSL writes them. Unset: Python's choice.",
    ),
    Setting(
        name="tls_minimum_version",
        type=Choice(("1.2", "1.3"), {"tlsv1.2": "1.2", "tlsv1.3": "1.3"}),
        default="1.2",
        section=_TLS,
        help="The oldest TLS version that is spoken.",
    ),
    Setting(
        name="self_signed",
        type=Switch(),
        default=False,
        section=_TLS,
        help="TLS with a throw-away certificate, for development.",
        details="""\
For `localhost`, the loopback addresses, and the hosts of `bind`. Needs trustme: `pip install
'servo-server[dev-tls]'`.""",
    ),
]
