"""Recognises the variables that Kubernetes sets for the services of a container's namespace.

For a service named `servo-app` they are `SERVO_APP_SERVICE_HOST`, `SERVO_APP_SERVICE_PORT`,
`SERVO_APP_SERVICE_PORT_<NAME>` and, in the form of Docker's links, `SERVO_APP_PORT` and
`SERVO_APP_PORT_<NUMBER>_<PROTOCOL>` with `_PROTO`, `_PORT` and `_ADDR`. So a service named `servo`
or `servo-…` creates variables that look like our settings, although nobody set them on purpose. The
name alone does not show where a variable comes from: `SERVO_PORT=8000` is a user's mistake and gets
an error, while `SERVO_PORT=tcp://10.0.0.1:8000` comes from Kubernetes. So both name and value must
match.

See https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables.
"""

from __future__ import annotations

import ipaddress
import re

_SERVICE = "SERVO(?:_[A-Z0-9_]+)?"
# A variable may match several of these, because a service's own name may end in one of these words:
# SERVO_SERVICE_PORT is the port of a service `servo`, or the URL of a service `servo-service`. So
# each pattern is tried in turn.
_HOST = re.compile(rf"{_SERVICE}_SERVICE_HOST")
_PORT = re.compile(rf"{_SERVICE}_SERVICE_PORT(?:_[A-Z0-9_]+)?")
_LINK = re.compile(rf"{_SERVICE}_PORT")
_LINKED_PORT = re.compile(
    rf"{_SERVICE}_PORT_(?P<number>[0-9]+)_(?P<protocol>TCP|UDP|SCTP)(?:_(?P<part>PROTO|PORT|ADDR))?"
)
_URL = re.compile(r"(?:tcp|udp|sctp)://(?P<address>.+):(?P<number>[0-9]+)")


def is_service_variable(name: str, value: str) -> bool:
    """Whether an environment variable is one that Kubernetes sets for a service.

    name    the variable's name
    value   the variable's text
    """
    if _HOST.fullmatch(name) and _is_address(value):
        return True
    if _PORT.fullmatch(name) and _is_port(value):
        return True
    if _LINK.fullmatch(name) and _is_url(value):
        return True
    form = _LINKED_PORT.fullmatch(name)
    if form is None:
        return False
    number, protocol = form["number"], form["protocol"].lower()
    if form["part"] == "PROTO":
        return value == protocol
    if form["part"] == "PORT":
        return value == number
    if form["part"] == "ADDR":
        return _is_address(value)
    return _is_url(value) and value.startswith(f"{protocol}:") and value.endswith(f":{number}")


def _is_url(text: str) -> bool:
    form = _URL.fullmatch(text)
    return (
        form is not None and _is_port(form["number"]) and _is_address(form["address"].strip("[]"))
    )


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
