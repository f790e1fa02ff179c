"""Raw requests with their expected outcomes, for tests with bytes and over sockets.

`framing.json` was written for this project from RFC 9110 and 9112. gunicorn's own cases are not
part of this repository: they are read from a directory beside it, or from $SERVO_CORPORA.

`judge` is pure: it compares an `Outcome` with the case. Each way to run a case makes an `Outcome`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servo.http.events import Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits

_HERE = Path(__file__).parent
CORPORA = Path(os.environ.get("SERVO_CORPORA", _HERE.parent.parent.parent / "shared" / "corpora"))
GUNICORN_FILE = CORPORA / "gunicorn_requests.json"
GUNICORN_ABSENT = f"gunicorn's corpus is not here ({GUNICORN_FILE}; $SERVO_CORPORA names another)"


@dataclass(frozen=True)
class Case:
    """The bytes of one connection.

    kind        must_accept, must_reject, reject_or_accept or must_close_after
    requests    the requests for the app if the bytes are accepted: method, path, body, and for some
                also query, headers and trailers
    settings    the settings for the case, by name
    half_close  whether the client closes its side after the bytes
    rules       the other expectations, in the form of framing.json
    note        the reason for an expectation that differs from gunicorn's own
    rfc, level  the section with the requirement, and its strength
    """

    name: str
    data: bytes
    kind: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    half_close: bool = False
    rules: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    rfc: str = ""
    level: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Seen:
    """A request that the app got. `error` is set if reading its body failed."""

    method: str
    path: str
    body: bytes
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    trailers: tuple[tuple[str, str], ...] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case: the requests that the app got, all bytes from the server, and whether
    the server closed the connection before the test's deadline."""

    seen: tuple[Seen, ...]
    response: bytes
    closed: bool


def framing_cases() -> list[Case]:
    """The cases of framing.json and remembered.json. In the latter, a field before the remembered
    ones must not be overlooked."""
    cases = []
    files = ("framing.json", "remembered.json")
    for raw in (each for name in files for each in json.loads((_HERE / name).read_text())):
        expect = raw["expect"]
        cases.append(
            Case(
                name=raw["name"],
                data=raw["bytes"].encode("latin-1"),
                kind=expect["type"],
                requests=expect.get("requests", raw.get("alt_accept", [])),
                half_close=raw.get("half_close", False),
                rfc=raw["rfc"],
                level=raw["level"],
                rules={k: v for k, v in {**raw, **expect}.items() if k in _RULES},
            )
        )
    return cases


_RULES = (
    "alt_accept",
    "alt_reject",
    "require_accept",
    "allow_101",
    "forbid_header",
    "forbid_ctl",
    "forbid_crlf",
)


def warm_ups(case: Case) -> list[bytes]:
    """Ordinary requests for /warm that end with the last lines of the case's own head.

    If such a request is sent twice before a case, the connection remembers the fields of the case,
    or the last of them. If the lines have no Host, one is added in front. If they declare a body, a
    body follows. Leaves out requests that would be refused, or would end the connection.
    """
    if "proxy_protocol" in case.settings:
        return []  # its header must come before the first request
    end = case.data.find(b"\r\n\r\n")
    head = case.data[: end + 4] if end >= 0 else b""
    starts = [match.end() for match in re.finditer(rb"HTTP/1\.1\r\n", head)]
    sections = [head[start:] for start in starts]
    lines = head.split(b"\r\n")[1:-2]
    sections += [b"\r\n".join([*lines[n:], b"", b""]) for n in range(len(lines))]
    sections.append(b"\r\n")
    with_host = [
        each if re.search(rb"(?im)^host:", each) else b"Host: x\r\n" + each for each in sections
    ]
    found = (_warm_up(section, case) for section in dict.fromkeys(with_host))
    return [warm_up for warm_up in found if warm_up]


def _warm_up(section: bytes, case: Case) -> bytes:
    """A complete request with these field lines; b"" if it would not be an ordinary one."""
    defaults = Limits()
    limits = Limits(
        request_line=case.settings.get("limit_request_line", defaults.request_line),
        header_count=case.settings.get("limit_request_fields", defaults.header_count),
        header_field=case.settings.get("limit_request_field_size", defaults.header_field),
    )
    head = b"POST /warm HTTP/1.1\r\n" + section
    event = H1Connection(limits).receive_data(head)
    if not isinstance(event, Request) or event.upgrade is not None or event.expect_continue:
        return b""
    if not event.keep_alive or any(_is_special(name, case) for name, _ in event.headers):
        return b""
    if not event.more_body:
        return head
    length = event.content_length
    if length is None:
        return head + b"0\r\n\r\n"
    return head + b"w" * length if length < 1000 else b""


def _is_special(name: bytes, case: Case) -> bool:
    """Whether code above the parser may refuse a request because of this field."""
    if b"_" in name:
        return case.settings.get("header_map") == "refuse"
    return b"forwarded" in name


def gunicorn_cases() -> list[Case]:
    """gunicorn's valid and invalid requests; [] if the file is absent."""
    if not GUNICORN_FILE.exists():
        return []
    return [
        _from_gunicorn(raw)
        for raw in json.loads(GUNICORN_FILE.read_text())
        if raw["id"] not in LEFT_OUT
    ]


# Cases that need a setting of gunicorn that Servo does not have, because RFC 9112 forbids its
# effect.
LEFT_OUT = {
    "valid/028": "strip_header_spaces: white space before a colon is refused (RFC 9112 5.1)",
    "valid/031compat": "needs casefold_http_method: methods are case-sensitive (RFC 9110 9.1)",
    "valid/031compat2": "needs permit_unconventional_http_method, which Servo does not have",
    "valid/compat_obs_fold": "needs permit_obsolete_folding: folds are refused (RFC 9112 5.2)",
    "valid/compat_obs_fold_huge": "needs permit_obsolete_folding: folds are refused (RFC 9112 5.2)",
}

# Requests that gunicorn accepts and Servo refuses; the tests check the refusal.
_REFUSED_HERE = {
    "valid/005": "'#' can't be in a request target (RFC 9112 3.2)",
    "valid/009": "'#' in the target, and Transfer-Encoding: identity; gunicorn 27 also refuses it",
    "valid/014": "a quote can't be in a request target (RFC 3986 2)",
    "valid/025": "Servo does not decode gzip: 501 (RFC 9112 6.1)",
    "valid/025_line": "Servo does not decode gzip: 501 (RFC 9112 6.1)",
    "valid/027": "non-ASCII in the target (RFC 9112 3.2); gunicorn 27 also refuses it",
    "valid/029": "identity is no longer a transfer coding: 501 (RFC 9112 7)",
    "valid/030": "identity is no longer a transfer coding: 501 (RFC 9112 7)",
    "valid/099": "the body is incomplete: 8,599 of 17,914 bytes (RFC 9112 8)",
    "valid/pp_03": "an enabled PROXY protocol requires its header (its specification, section 2)",
    "valid/rfc9112_smuggle_gzip_chunked_01": "Servo does not decode gzip: 501 (RFC 9112 6.1)",
    "valid/rfc9112_smuggle_te_identity_chunked_01": "identity is no longer a transfer coding",
    "valid/rfc9112_target_authority_connect_01": "CONNECT is for proxies: 501 (RFC 9110 9.3.6)",
    "valid/rfc9112_target_authority_ipv6_01": "CONNECT is for proxies: 501 (RFC 9110 9.3.6)",
}

# gunicorn's default if Servo's differs, or a setting with another name or form.
_SETTINGS = {
    "valid/024": {"limit_request_line": 8200, "limit_request_field_size": 8210},
    "invalid/006": {"limit_request_line": 4094},
    "invalid/013": {"limit_request_field_size": 14},
    "invalid/019": {"forwarded_allow_ips": "*"},
    "invalid/limit_header_default_01": {},
}


def _from_gunicorn(raw: dict[str, Any]) -> Case:
    name = raw["id"]
    data = raw["bytes"].encode("latin-1")
    requests = [_request_from_gunicorn(request) for request in raw.get("requests", [])]
    note = _REFUSED_HERE.get(name, "")
    return Case(
        name=name,
        data=_with_hosts(data, [r["target"] for r in raw.get("requests", [])]),
        kind="must_accept" if raw["kind"] == "valid" and not note else "must_reject",
        requests=requests,
        settings=_SETTINGS.get(name, raw["nondefault_cfg"]),
        # These cases test the end of the client's bytes.
        half_close=name == "valid/099"
        or raw.get("expect_exc") in ("NoMoreData", "ChunkMissingTerminator"),
        note=note,
    )


def _request_from_gunicorn(request: dict[str, Any]) -> dict[str, Any]:
    target = re.sub(r"^https?://[^/]*", "", request["target"])
    path, _, query = target.partition("?")
    return {
        "method": request["method"],
        "path": path,
        "query": query,
        "body": request["body"],
        "headers": request["headers"],
        "trailers": request["trailers"],
    }


def _with_hosts(data: bytes, targets: list[str]) -> bytes:
    """Add `Host: x` to each HTTP/1.1 head without Host, so that a case tests what it is meant to:
    25 valid and 34 invalid ones lack Host, and RFC 9112 section 3.2 makes us refuse them for it."""
    pos = 0
    for target in targets or [""]:
        ending = b"%b HTTP/1.1\r\n" % target.encode("latin-1")
        line = data.find(ending, pos)
        if line < 0:
            continue
        pos = line + len(ending)
        if not re.search(rb"(?i)^host[ \t]*:", data[pos:].split(b"\r\n\r\n")[0], re.MULTILINE):
            data = data[:pos] + b"Host: x\r\n" + data[pos:]
    return data


def judge(case: Case, outcome: Outcome) -> str | None:
    """None if the outcome is as the case expects, otherwise a description of the fault."""
    for seen in outcome.seen:
        expected = [r["path"] for r in case.requests + (case.rules.get("alt_accept") or [])]
        if seen.path == "/smuggled" and "/smuggled" not in expected:
            return "a smuggled request reached the app"
    refused = _why_not_refused(outcome)
    if case.kind == "must_reject":
        if refused is None or not case.rules.get("alt_accept"):
            return refused
        return _why_not_accepted(case, outcome, case.rules["alt_accept"])
    accepted = _why_not_accepted(case, outcome, case.requests)
    if case.kind == "must_close_after":
        if accepted is None:
            return None if outcome.closed else "the connection was left open"
        return accepted if case.rules.get("require_accept") else refused
    if case.kind == "must_accept" and not case.rules.get("alt_reject"):
        return accepted
    return None if accepted is None else refused and f"{refused}, and {accepted}"


def statuses(response: bytes) -> list[int]:
    """Status codes of the responses in a connection's bytes, 1xx left out.

    Raises `ValueError` if the bytes are not a sequence of complete responses.
    """
    codes = []
    while response:
        head, separator, rest = response.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?: [^\r\n]*)?(?:\r\n|$)", head)
        if not separator or match is None:
            raise ValueError(f"no response: {response[:80]!r}")
        code = int(match[1])
        response = rest
        if code < 200:
            continue
        codes.append(code)
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        }
        if b"content-length" in fields:
            length = int(fields[b"content-length"])
            if len(response) < length:
                raise ValueError("a response is cut short")
            response = response[length:]
        elif fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            response = _skip_chunks(response)
        elif code not in (204, 304):
            response = b""
    return codes


def _skip_chunks(data: bytes) -> bytes:
    while True:
        line, _, data = data.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if data[size : size + 2] != b"\r\n":
            raise ValueError("a chunked response is cut short")
        data = data[size + 2 :]
        if not size:
            return data


def _why_not_refused(outcome: Outcome) -> str | None:
    """Why this is no refusal, which is a 4xx, a 5xx or no response, and a closed connection."""
    try:
        codes = statuses(outcome.response)
    except ValueError as error:
        return str(error)
    whole = [seen for seen in outcome.seen if seen.error is None]
    if codes and codes[-1] < 400:
        return f"it was answered with {codes}"
    if not outcome.closed:
        return "the connection was left open" if codes else "no answer"
    if len(whole) > max(len(codes) - 1, 0):
        return f"it reached the app: {whole[-1]}"
    return None


def _why_not_accepted(case: Case, outcome: Outcome, requests: list[dict[str, Any]]) -> str | None:
    try:
        codes = statuses(outcome.response)
    except ValueError as error:
        return str(error)
    if case.rules.get("allow_101") and outcome.response.startswith(b"HTTP/1.1 101 "):
        return None
    if codes != [200] * len(requests):
        return f"answered with {codes} instead of {len(requests)} times 200"
    if len(outcome.seen) != len(requests):
        return f"{len(outcome.seen)} requests reached the app instead of {len(requests)}"
    for seen, wanted in zip(outcome.seen, requests, strict=True):
        fault = _difference(seen, wanted) or _forbidden(case, seen)
        if fault is not None:
            return fault
    return None


def _difference(seen: Seen, wanted: dict[str, Any]) -> str | None:
    if seen.error is not None:
        return f"its body could not be read: {seen.error}"
    if (seen.method, seen.path) != (wanted["method"], wanted["path"]):
        return f"seen as {seen.method} {seen.path}"
    if seen.body != wanted["body"].encode("latin-1"):
        return f"its body was seen as {seen.body[:80]!r}"
    if seen.query != wanted.get("query", seen.query):
        return f"its query was seen as {seen.query}"
    headers = [(name.lower(), value) for name, value in seen.headers]
    for name, value in wanted.get("headers", ()):
        if seen.headers and (name.lower(), value) not in headers:
            return f"header {name} was not seen as {value[:80]!r}"
    trailers = wanted.get("trailers")
    if trailers is not None and seen.trailers is not None:
        given = sorted((name.lower(), value) for name, value in seen.trailers)
        if given != sorted((name.lower(), value) for name, value in trailers):
            return f"its trailers were seen as {given}"
    return None


def _forbidden(case: Case, seen: Seen) -> str | None:
    headers = {name.lower(): value for name, value in seen.headers}
    if "forbid_header" in case.rules:
        name, value = case.rules["forbid_header"]
        if name in headers and value in (None, headers[name]):
            return f"the app saw {name}"
    for rule, pattern in (("forbid_ctl", r"[\x00-\x08\x0a-\x1f\x7f]"), ("forbid_crlf", r"[\r\n]")):
        if re.search(pattern, headers.get(case.rules.get(rule, ""), "")):
            return "the app saw a control character in a header"
    return None
