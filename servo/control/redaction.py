"""Removes secrets from texts that users publish, such as the report for a bug.

A secret is found by its value, by the name in front of it, or by its form. Too much is removed
rather than too little: a long string of random characters may be a key, so it goes. Each pattern is
bounded, so that the time grows only linearly with the text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

REMOVED = "[removed]"

# A shorter value is not looked for, because it is also a part of many harmless words.
_MIN_VALUE = 4
# A value of fewer characters is only removed where it is a whole word.
_MIN_PART = 8

_WORDS = (
    r"(?:password|passwd|passphrase|passcode|pwd|secret|token|api[_-]?key|credential|cookie|session"
    r"|auth(?!or)|signature|csrf|jwt|salt|dsn|(?<![A-Za-z])(?:pass|sig|key)(?![A-Za-z]))"
)
_SECRET_NAME = re.compile(_WORDS, re.IGNORECASE)
# The variables of a shell that have such a name, but no secret.
_HARMLESS = ("PWD", "OLDPWD", "SSH_AUTH_SOCK", "XDG_SESSION_ID", "XDG_SESSION_TYPE")

_VALUE = (
    r"(?!\[removed\])(?:b?\"(?:[^\"\\\n]|\\.){0,2000}\"?"
    r"|b?'(?:[^'\\\n]|\\.){0,2000}'?"
    r"|\\[\"'](?:(?!\\[\"'])[^\n]){0,2000}|\S+)"
)
# In a variable, the URL is the whole value, so its password may even have blanks.
_USERINFO_OF_VARIABLE = re.compile(r"://(?P<user>.{1,500})@")
_USERINFO = re.compile(r"://[^\s\"'<>]{1,500}@")

# (pattern, replacement), in this order.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY-----.*?"
            r"(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY-----|\Z)",
            re.DOTALL,
        ),
        REMOVED,
    ),
    (_USERINFO, f"://{REMOVED}@"),
    # The rest of the line of a header.
    (
        re.compile(
            r"\b((?:proxy-)?authorization|set-cookie|cookie)([\"'\\)\s]{0,4}[:=,]).*",
            re.IGNORECASE,
        ),
        rf"\1\2 {REMOVED}",
    ),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {REMOVED}"),
    (re.compile(r"\?[\w.~%+\[\]-]{1,100}=[^\s\"']*"), f"?{REMOVED}"),
    # name=value, name: value, "name": "value", ('name', 'value')
    (
        re.compile(
            rf"({_WORDS}[\w-]{{0,40}}[\"'\\)\]]{{0,4}}\s{{0,3}}"
            rf"(?:=>|[:=](?!>)|,(?=\s?b?\\?[\"']))\s{{0,3}}){_VALUE}",
            re.IGNORECASE,
        ),
        rf"\1{REMOVED}",
    ),
    (
        re.compile(rf"(--[\w-]{{0,20}}?{_WORDS}[\w-]{{0,40}}\s+){_VALUE}", re.IGNORECASE),
        rf"\1{REMOVED}",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), REMOVED),
    (
        re.compile(
            r"\b(?:gh[pousr]_|github_pat_|xox[abeprs]-|[sr]k_(?:live|test)_|sk-|glpat-|AIza|pypi-"
            r"|npm_|hvs\.|SG\.)[\w.-]{10,}"
        ),
        REMOVED,
    ),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w.-]*"), REMOVED),  # a JSON Web Token
    (re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), REMOVED),
    (re.compile(r"(?<!\w)[0-9a-fA-F]{32,}(?!\w)"), REMOVED),
)
_OPAQUE = re.compile(r"(?<![\w+-])[\w+-]{32,}={0,2}")


def is_secret_name(name: str) -> bool:
    """Whether the value of a variable with this name may be a secret."""
    return name not in _HARMLESS and _SECRET_NAME.search(name.replace("_", "-")) is not None


def secret_values(variables: Mapping[str, str]) -> set[str]:
    """The values of environment variables that are secret, and the passwords of URLs in them.

    variables   the environment
    """
    found = {value for name, value in variables.items() if is_secret_name(name)}
    for value in variables.values():
        for match in _USERINFO_OF_VARIABLE.finditer(value):
            user, colon, password = match["user"].partition(":")
            found.add(password if colon else user)
    return found


def without_values(text: str, values: Iterable[str]) -> str:
    """A text without the given secrets, in plain form or quoted as in a URL or in Python.

    text     the text
    values   the secrets
    """
    for value in sorted(_forms(values), key=len, reverse=True):
        if len(value) >= _MIN_PART:
            text = text.replace(value, REMOVED)
        elif len(value) >= _MIN_VALUE:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", lambda _: REMOVED, text)
    return text


def _forms(values: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for value in values:
        for line in value.splitlines():  # a log may show the lines of a key one by one
            plain = line.strip()
            found |= {plain, unquote(plain), quote(plain, safe=""), repr(plain)[1:-1]}
    return found


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """JSON values with each text changed. The names in objects stay.

    value    the value
    change   returns the new text
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: with_texts(each, change) for name, each in value.items()}
    if isinstance(value, list):
        return [with_texts(each, change) for each in value]
    return value


def redact(text: str) -> str:
    """A text without everything that looks like a secret."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return _OPAQUE.sub(_without_random, text)


def _without_random(match: re.Match[str]) -> str:
    """The replacement of a long word: a random one has digits, capitals and small letters."""
    word = match[0]
    kinds = (str.isdigit, str.isupper, str.islower)
    is_random = all(any(map(kind, word)) for kind in kinds)
    return REMOVED if is_random else word
