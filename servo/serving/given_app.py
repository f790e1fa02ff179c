"""The application that `servo.run` was called with, if it is an object and not a name.

Workers import this module like that of any application. They are forked, so they find the object.
"""

from __future__ import annotations

from typing import Any

NAME = f"{__name__}:app"

app: Any = None
