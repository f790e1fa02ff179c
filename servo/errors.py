"""The errors that Servo raises on purpose, each with the exit code of the command.

Library code raises them. Only `servo.cli` turns them into a message and an exit status.
"""

from __future__ import annotations

from typing import ClassVar, Final

# The exit code after an error in Servo itself (EX_SOFTWARE of sysexits.h). It differs from the code
# after a wrong configuration, because in that case systemd must not restart the server.
INTERNAL_ERROR: Final = 70


class ServoError(Exception):
    """The base class. `str(error)` is a message that an operator can act on."""

    exit_code: ClassVar[int] = 1


class ConfigError(ServoError):
    """Raised for an invalid setting, or for an invalid file or variable with settings."""


class UsageError(ConfigError):
    """Raised for an invalid command line."""

    exit_code = 2


class ClusterError(ServoError):
    """The base of the errors of `servo.cluster`."""


class BindError(ServoError):
    """Raised if an address can't be bound, or an inherited socket can't be used."""


class AppError(ServoError):
    """Raised if the application violates the specification of its interface (PEP 3333, ASGI)."""


class BootError(ServoError):
    """Raised if no worker of the first generation could boot."""

    exit_code = 3


class AppImportError(BootError):
    """Raised if the application can't be found, imported or called.

    message  the application and the reason
    details  the traceback as text, without Servo's own frames; "" if there is none
    """

    exit_code = 4

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
