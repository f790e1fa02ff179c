"""Turns the names in hypercorn's TOML files into those of Servo's settings.

A file counts as hypercorn's if `hypercorn` is in its name: `hypercorn.toml`, `prod.hypercorn.toml`.
In any other TOML file an unknown name is an error, which names the setting to use instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from servo.settings.peer_flags import worker_class_and_loop
from servo.settings.peers import PEERS
from servo.settings.schema import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Without these, requests would get wrong answers, or get answers that they must not get.
_REFUSED = frozenset(("insecure_bind", "server_names"))


@dataclass
class HypercornFile:
    """The content of such a file.

    values    setting -> (its value, the name in the file)
    ignored   (name, advice): options without counterpart
    problems  (name, advice): options without which the server must not start
    others    the remaining names, for which the usual rules apply
    """

    values: dict[str, tuple[Any, str]] = field(default_factory=dict)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)


def read_as_hypercorns(table: Mapping[str, Any]) -> HypercornFile:
    """Turn the names of a table that has hypercorn's options into settings."""
    found = HypercornFile()
    for name, value in table.items():
        if name in _TURNED:
            values = _TURNED[name](value)
        elif name not in PEERS:
            found.others[name] = value
            continue
        elif name in _REFUSED:
            values = {}
            if value:
                found.problems.append((name, _advice(name)))
        elif PEERS[name].setting and not PEERS[name].value and not PEERS[name].remark:
            values = {PEERS[name].setting: value}
        else:
            values = {}
            if value:
                found.ignored.append((name, _advice(name)))
        for setting, new in values.items():
            # `graceful_timeout` takes precedence over `shutdown_timeout`, whichever comes first.
            if setting == name or not any(canonical(other) == setting for other in table):
                found.values.setdefault(setting, (new, name))
    return found


def _advice(name: str) -> str:
    peer = PEERS[name]
    if not peer.setting:
        return peer.remark
    value = f" = {peer.value}" if peer.value else ""
    return f"use {peer.setting}{value}" + (f" ({peer.remark})" if peer.remark else "")


def _worker_class(value: object) -> dict[str, Any]:
    if isinstance(value, str) and value in ("uvloop", "asyncio"):
        return worker_class_and_loop(value) or {}
    return {"worker_class": value}


def _protocols(value: object) -> dict[str, Any]:
    names = value if isinstance(value, list) else [value]
    return {"http_protocols": [{"http/1.1": "h1"}.get(str(name), name) for name in names]}


_TURNED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "worker_class": _worker_class,
    "read_timeout": lambda value: {"header_timeout": value, "body_timeout": value},
    "alpn_protocols": _protocols,
    "include_server_header": lambda value: {} if value else {"server_header": ""},
    "debug": lambda value: {"loglevel": "debug"} if value else {},
}
