"""Settings of TLS: certificates, client certificates, versions and ciphers."""

from __future__ import annotations

from typing import Any

from servo.settings.setting import Setting
from servo.settings.types import Choice, Input, Seconds, Switch, Table, Text, ValueType

_TLS = "TLS"
_CERT_REQS = {"none": 0, "optional": 1, "required": 2}


class CertReqs(ValueType):
    """`ssl.CERT_NONE`, `CERT_OPTIONAL` or `CERT_REQUIRED`, as a number; in text, as a name."""

    metavar = "|".join(_CERT_REQS)
    valid = "none, optional or required (or gunicorn's 0, 1, 2)"

    def from_text(self, text: str) -> int:
        name = text.strip().lower().removeprefix("cert_")
        return _CERT_REQS[name] if name in _CERT_REQS else self.from_value(int(name))

    def from_value(self, value: object) -> int:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("not a number")
        if value not in _CERT_REQS.values():
            raise ValueError("out of range")
        return int(value)

    def to_text(self, value: int) -> str:
        return next(name for name, number in _CERT_REQS.items() if number == value)


class HostTable(Table):
    """Host names and their files.

    In a configuration file, a host's entry is a table, or the path of one file with certificate and
    key. In the setting's value, each entry is a table.
    """

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
            raise ValueError("other keys than certfile, keyfile and keyfile_password_file")
        return {name: Input().from_value(path) for name, path in files.items() if path is not None}


def _host(name: object) -> str:
    """A host name in the form that clients send in SNI: lower case, in ASCII (IDNA)."""
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
        help="The server's certificate, followed by its issuers' (PEM); turns TLS on.",
        details="""\
TLS then applies to every address of `bind`. Relative paths start at `chdir`. The arbiter reads the
files, so only its user needs access to them. It reads them again at each reload. If a file can't be
used, a start fails, and a reload is rolled back.""",
    ),
    Setting(
        name="keyfile",
        type=Input(),
        default=None,
        nullable=True,
        section=_TLS,
        help="The certificate's private key (PEM); needed if `certfile` doesn't contain it.",
    ),
    Setting(
        name="keyfile_password_file",
        type=Input(),
        default=None,
        nullable=True,
        section=_TLS,
        help="A file with the password of encrypted keys in its first line.",
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
        name="certfile_watch",
        type=Seconds(),
        default=15.0,
        unit="seconds",
        section=_TLS,
        help="How often to check for changed certificate files; 0: never.",
        details="""\
After a change, new connections get the new certificate, without a reload; existing connections are
not affected. This applies to `certfile`, `keyfile`, `sni_certs`, `ca_certs` and the files with
passwords. If the files can't be used, the log says so once, and the old certificate stays in use.
Changed files are read when they have not changed for a second. The shortest interval is a second.
If the files are used by an `ssl_context` hook, a reload is needed.""",
    ),
    Setting(
        name="sni_certs",
        type=HostTable(),
        default={},
        section=_TLS,
        help="Certificates for further host names (SNI).",
        details="""\
An exact name takes precedence over a pattern such as `*.example.org`, where `*` matches one label.
Clients that ask for any other name get `certfile`. If a host has no `keyfile_password_file`,
`keyfile_password` or the setting `keyfile_password_file` applies.

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
        help="Certificates (PEM) of the authorities that client certificates may come from.",
    ),
    Setting(
        name="cert_reqs",
        type=CertReqs(),
        default=0,
        section=_TLS,
        help="Whether clients must present a certificate.",
        details="""\
`optional` asks for a certificate, but also accepts clients without one. In both cases a certificate
that fails verification ends the handshake. `optional` and `required` need `ca_certs`.""",
    ),
    Setting(
        name="ciphers",
        type=Text(),
        default=None,
        nullable=True,
        section=_TLS,
        help="The ciphers for TLS 1.2, in OpenSSL's form. Unset: Python's default.",
    ),
    Setting(
        name="tls_minimum_version",
        type=Choice(("1.2", "1.3"), {"tlsv1.2": "1.2", "tlsv1.3": "1.3"}),
        default="1.2",
        section=_TLS,
        help="The oldest TLS version that is accepted.",
    ),
    Setting(
        name="self_signed",
        type=Switch(),
        default=False,
        section=_TLS,
        help="Turn TLS on with a temporary self-signed certificate, for development.",
        details="""\
The certificate is valid for `localhost`, the loopback addresses, and the hosts of `bind`. This
needs trustme: `pip install 'servo-server[dev-tls]'`.""",
    ),
]
