"""Settings of pools: processes for heavy work beside the requests (`servo.pools`)."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from servo.settings.setting import Setting
from servo.settings.suggestions import did_you_mean
from servo.settings.types import Memory, Seconds, Table, ValueType, Whole

if TYPE_CHECKING:
    from pathlib import Path

_POOLS = "Pools"
# The board of a pool has 256 rows, and a reload needs one more than `workers`.
_MOST_PROCESSES = 200
# The kernel limits every queue of connections to this by default (net.core.somaxconn).
_LONGEST_QUEUE = 4096


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The settings of one pool; `SETTINGS` explains them."""

    workers: int = 1
    initializer: str = ""
    timeout: float = 300.0
    max_tasks: int = 0
    max_memory: int | str = 0
    queue: int = 100
    queue_timeout: float = 0.0


class Function(ValueType):
    """The name of a function, or "" for none."""

    metavar = "MODULE:FUNCTION"
    valid = "module:function"

    _FORM = re.compile(r"([^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*)?")

    def from_text(self, text: str) -> str:
        text = text.strip()
        if not self._FORM.fullmatch(text):
            raise ValueError("not the name of a function")
        return text


_OPTIONS: dict[str, ValueType] = {
    "workers": Whole(1, maximum=_MOST_PROCESSES),
    "initializer": Function(),
    "timeout": Seconds(),
    "max_tasks": Whole(),
    "max_memory": Memory(),
    "queue": Whole(1, maximum=_LONGEST_QUEUE),
    "queue_timeout": Seconds(),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)


class InvalidPool(ValueError):  # noqa: N818
    """A ValueError whose `advice` names the pool and the option."""

    def __init__(self, advice: str) -> None:
        super().__init__(advice)
        self.advice = advice


class PoolTable(Table):
    """The pools by name. The value of each is a `PoolSettings`."""

    valid = (
        "a table (in text: a JSON object) from the names of pools to tables of their options, such "
        'as {"ml": {"workers": 2}}'
    )

    def from_value(self, value: object) -> dict[str, Any]:
        table = super().from_value(value)
        return {self._name(name): self._pool(name, given) for name, given in table.items()}

    def to_text(self, value: dict[str, Any]) -> str:
        default = asdict(PoolSettings())
        tables = {
            name: {key: part for key, part in asdict(pool).items() if part != default[key]}
            for name, pool in value.items()
        }
        return json.dumps(tables, ensure_ascii=False)

    def check(self, value: dict[str, Any], base: Path) -> None:
        if value and not sys.platform.startswith("linux"):
            raise InvalidPool(f"pools work on Linux only, and this is {sys.platform}")

    def _name(self, name: object) -> str:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidPool(
                f"the name of a pool has at most 32 letters, digits, - and _, and begins with a "
                f"letter, unlike {name!r}"
            )
        return name

    def _pool(self, name: str, given: object) -> PoolSettings:
        if isinstance(given, PoolSettings):
            return given
        if not isinstance(given, dict):
            raise InvalidPool(f"pools.{name} must be a table of options, such as workers = 2")
        values = {option: self._option(name, option, part) for option, part in given.items()}
        return PoolSettings(**values)

    def _option(self, name: str, option: object, value: object) -> Any:
        kind = _OPTIONS.get(option) if isinstance(option, str) else None
        if kind is None:
            known = [field.name for field in fields(PoolSettings)]
            advice = did_you_mean(str(option), known) or f"; the options are {', '.join(known)}"
            raise InvalidPool(f"pools.{name} has no option {option}{advice}")
        try:
            return kind.from_value(value)
        except ValueError as error:
            raise InvalidPool(f"pools.{name}.{option} must be {kind.valid}") from error


SETTINGS = [
    Setting(
        name="pools",
        type=PoolTable(),
        default={},
        section=_POOLS,
        help="Pools of processes for heavy work, by name; see servo.pools.",
        details="""\
A table for each pool: `[pools.NAME]` in TOML (`[tool.servo.pools.NAME]` in `pyproject.toml`), or
`pools = {"NAME": {…}}` in Python. [The guide](../how-to/pools.md) shows how to use a pool. The
options are:

* `workers` (default 1): the number of processes.
* `initializer` (`module:function`, default none): a function that each process calls before its
  first task, for example to load a model.
* `timeout` (default 300): how many seconds a task may run; 0: no limit. After that its process is
  ended, with its stacks in the log.
* `max_tasks` (default 0): replace a process after about this many tasks; 0: never.
* `max_memory` (default 0): replace a process that uses more memory than this (`512M`, `25%`) after
  its task; 0: never. Pages that processes share count in full.
* `queue` (default 100): how many tasks may wait for a free process. More are refused (`QueueFull`).
* `queue_timeout` (default 0): how many seconds a task may wait for a place in a full queue.

A reload applies changes. `boot_timeout` limits the time of the initializer, and `graceful_timeout`
the time of a running task when its process is replaced or the server stops.""",
    )
]
