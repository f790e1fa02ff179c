"""Turns the keyword arguments of `servo.run` and `servo.Server` into flags of the command line.

The names are those of Servo's settings, of its flags, and of uvicorn's, hypercorn's and granian's
options, so that a call of `uvicorn.run` needs no other change.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from servo.settings.flags import all_flags
from servo.settings.peer_flags import parameter_name, peer_flags
from servo.settings.peers import peer_of
from servo.settings.schema import SETTINGS, advise, canonical

_BY_FLAG = {
    flag[2:].replace("-", "_"): setting.name
    for setting in SETTINGS.values()
    for flag in all_flags(setting)
    if flag.startswith("--") and not flag.startswith("--no-")
}
_PASSWORDS = ("ssl_keyfile_password", "ssl_key_password")


def flags_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The flags for these options, as `parse_flags` returns them. None means "not given".

    Raises TypeError for an unknown option.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None:
            found.update(_flag(name, value))
    return found


def _flag(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, PathLike):
        value = fspath(value)
    if name == "log_config" and isinstance(value, Mapping):
        return {"logconfig_dict": dict(value)}
    if name == "log_level" and isinstance(value, int):
        # uvicorn's level `trace` is 5.
        return {"loglevel": logging.getLevelName(max(value, logging.DEBUG)).lower()}
    if name == "server_header" and isinstance(value, bool):
        return {} if value else {"server_header": ""}
    if name in _PASSWORDS:
        return {"keyfile_password": value}  # no other user sees the arguments of a function
    if name == "headers":  # uvicorn's: pairs
        return {"response_headers": [f"{field}: {text}" for field, text in value]}
    setting = canonical(name) or _BY_FLAG.get(name)
    if setting is not None:
        return {setting: value}
    flag = "--" + name.replace("_", "-")
    if flag in peer_flags() or f"--no-{flag[2:]}" in peer_flags():
        return _peer_flag(flag, value)
    peer = peer_of(name)
    if peer is not None and peer.setting and not peer.value and not peer.remark:
        return {peer.setting: value}
    raise TypeError(f"there is no option {name}{advise(name)}")


def _peer_flag(flag: str, value: Any) -> dict[str, Any]:
    takes_argument, _ = peer_flags().get(flag, (False, False))
    if isinstance(value, bool) and not takes_argument:
        flag = flag if value else f"--no-{flag[2:]}"
        return {parameter_name(flag): True} if flag in peer_flags() else {}
    if isinstance(value, (list, tuple)):
        return {parameter_name(flag): list(value)} if value else {}
    return {parameter_name(flag): str(value)}
