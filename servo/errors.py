"""The errors that Servo raises on purpose, each with the exit code that it ends the command with.

Library code raises them. Only `servo.cli` turns them into a message and an exit status.
"""

from __future__ import annotations

from typing import ClassVar


class ServoError(Exception):
    """The base class of all of them. `str(error)` is a message that an operator can act on."""

    exit_code: ClassVar[int] = 1


class ConfigError(ServoError):
    """A setting is wrong, or the file or variable that it comes from."""


class UsageError(ConfigError):
    """The command line is wrong."""

    exit_code = 2


class BindError(ServoError):
    """An address can't be bound, or an inherited socket can't be used."""


class AppError(ServoError):
    """The application has violated the specification of its interface (PEP 3333, ASGI)."""


class BootError(ServoError):
    """No worker of the first generation could boot."""

    exit_code = 3


class AppImportError(BootError):
    """The application can't be found, imported or called.

    message  names the application and the reason
    details  the traceback as text, without Servo's own frames; "" if there is none
    """

    exit_code = 4

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
