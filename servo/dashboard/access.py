"""Decides who may use the dashboard. Pure: no clock, no I/O.

On a TCP address every user of the machine can connect, and so can every page in the operator's
browser. So each request needs the token: in the form of the sign-in page, in the address
(`/?token=…`), in an Authorization field, or, for a browser that has signed in, as a cookie. The
cookie is not the token, but a signed time at which it expires. A browser sends it to every port of
the host, also to other programs, so it must be of little use there.

On a Unix socket the file's mode decides, and there is no token. A browser reaches such a socket
through `ssh -L` or a proxy, so any page can send requests there, too, with its own host name if it
has pointed that name at 127.0.0.1 (DNS rebinding). Then the browser would let the page read the
answers. So the Host field must name this machine's loopback. With a token this attack fails: the
browser has no cookie for the page's name.

Pages of other origins can't read answers, but they can send forms (CSRF). So a request that changes
something needs a field that forms can't have (X-Servo-Control), JSON, and no foreign Origin.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

COOKIE_S = 7 * 86_400
CONTROL_FIELD = "x-servo-control"
# The answer to a wrong token is delayed by FAILURE_S seconds. At most FAILURES answers are delayed
# at a time, and further tokens are refused at once. So at most FAILURES can be tried in FAILURE_S.
FAILURE_S = 1.0
FAILURES = 8


@dataclass(frozen=True)
class Rules:
    """What the settings say about access.

    digest    the SHA-256 of the token; b"" if none is asked for (a Unix socket)
    key       a secret of this server that signs cookies
    port      the port, for the name of the cookie; 0 on a Unix socket
    secure    whether the dashboard uses TLS
    control   whether the dashboard may control the server
    """

    digest: bytes
    key: bytes
    port: int
    secure: bool
    control: bool


class Access:
    """Checks requests.

    rules   the rules
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._failures = 0

    @property
    def asks_token(self) -> bool:
        """Whether requests need the token."""
        return bool(self._rules.digest)

    @property
    def control(self) -> bool:
        """Whether the dashboard may control the server."""
        return self._rules.control

    def refuses_host(self, fields: Mapping[str, str]) -> bool:
        """Whether the Host field is not safe; see the top of this module.

        fields   the request's fields by name, in lower case
        """
        return not self.asks_token and not _is_loopback(fields.get("host", ""))

    # --- the token --------------------------------------------------------------------------------

    def accepts(self, token: str) -> bool:
        """Whether this is the token. Takes the same time for every wrong one."""
        given = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        return hmac.compare_digest(given, self._rules.digest)

    def begin_failure(self) -> bool:
        """Note a wrong token. Returns whether its answer may wait; if so, call `end_failure`."""
        if self._failures >= FAILURES:
            return False
        self._failures += 1
        return True

    def end_failure(self) -> None:
        """Note that the answer to a wrong token was sent."""
        self._failures -= 1

    @property
    def is_busy(self) -> bool:
        """Whether so many tokens were wrong that no further one is checked now."""
        return self._failures >= FAILURES

    # --- the cookie -------------------------------------------------------------------------------

    def cookie(self, now: float) -> str:
        """The Set-Cookie field for a browser that has signed in.

        now   seconds since the epoch
        """
        expires = int(now) + COOKIE_S
        return self._set_cookie(f"{expires}.{self._signature(expires)}", COOKIE_S)

    def no_cookie(self) -> str:
        """The Set-Cookie field for a browser that signs out."""
        return self._set_cookie("", 0)

    def is_signed_in(self, fields: Mapping[str, str], now: float) -> bool:
        """Whether the request has a valid cookie, or none is needed.

        fields   the request's fields by name, in lower case
        now      seconds since the epoch
        """
        if not self.asks_token:
            return True
        cookies: SimpleCookie = SimpleCookie()
        with suppress(CookieError):
            cookies.load(fields.get("cookie", ""))
        found = cookies.get(self._cookie_name)
        expires, _, signature = found.value.partition(".") if found is not None else ("", "", "")
        if not expires.isdecimal() or len(expires) > 12:
            return False
        valid = hmac.compare_digest(signature.encode(), self._signature(int(expires)).encode())
        return valid and now < int(expires)

    @property
    def _cookie_name(self) -> str:
        # All ports of a host share their cookies, and each may have a dashboard.
        return f"servo_dashboard_{self._rules.port}"

    def _set_cookie(self, value: str, age_s: int) -> str:
        secure = "; Secure" if self._rules.secure else ""
        rest = f"Path=/; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}"
        return f"{self._cookie_name}={value}; {rest}"

    def _signature(self, expires: int) -> str:
        return hmac.new(self._rules.key, b"cookie %d" % expires, hashlib.sha256).hexdigest()


def bearer_token(fields: Mapping[str, str]) -> str | None:
    """The token in the Authorization field; None if there is none.

    fields   the request's fields by name, in lower case
    """
    scheme, _, token = fields.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def why_foreign(fields: Mapping[str, str]) -> str:
    """Why a form may come from another site than the dashboard's own; "" if it does not.

    fields   the request's fields by name, in lower case

    The Origin field proves nothing here: because of our Referrer-Policy, browsers send `null` with
    our own forms.
    """
    if fields.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "it comes from another site (Sec-Fetch-Site)"
    return ""


def why_not_control(fields: Mapping[str, str]) -> str:
    """Why a request that changes something is refused; "" if it is not.

    fields   the request's fields by name, in lower case
    """
    if why := why_foreign(fields):
        return why
    origin = fields.get("origin")
    # Compare only host and port: behind a proxy with TLS, the schemes differ.
    if origin is not None and not _names_host(origin, fields.get("host", "")):
        return "it comes from another origin (Origin)"
    if fields.get(CONTROL_FIELD) != "1":
        return "it lacks the field X-Servo-Control: 1"
    if fields.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return "its Content-Type is not application/json"
    return ""


def _names_host(origin: str, host: str) -> bool:
    with suppress(ValueError):
        parts = urlsplit(origin)
        default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
        named = parts.netloc.lower()
        return bool(host) and named in (host.lower(), host.lower().removesuffix(default))
    return False


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    return False
