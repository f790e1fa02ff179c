"""`executor`, `names` and `declare`: the pools of the server, or local ones outside of it."""

from __future__ import annotations

import atexit
import difflib
import threading
from typing import TYPE_CHECKING

from servo.pools.calls import Pool
from servo.pools.errors import NoSuchPool
from servo.pools.local import LocalExecutor, LocalPool, LocalProcesses
from servo.pools.places import places
from servo.pools.pool_executor import PoolExecutor

if TYPE_CHECKING:
    from servo.pools.places import Place

_pools: dict[Place, Pool] = {}
_declared: dict[str, LocalPool] = {}
_local: dict[str, LocalProcesses] = {}
_lock = threading.Lock()


def executor(name: str, *, cancel_running: bool = False) -> PoolExecutor | LocalExecutor:
    """The executor of a pool. Cheap: each call returns a new object for the same processes.

    name            the pool's name in the configuration
    cancel_running  whether `Future.cancel` also ends a running task, by ending its process (in a
                    server only). The task also ends if this process ends, or closes its stream

    Raises NoSuchPool if the configuration has no such pool, and RuntimeError in the arbiter.
    Outside of a server, every name is a local pool.
    """
    if places.refusal:
        raise RuntimeError(places.refusal)
    if places.by_name is None:
        return LocalExecutor(_local_processes(name))
    place = places.by_name.get(name)
    if place is None:
        raise NoSuchPool(_unknown(name, list(places.by_name)))
    with _lock:
        pool = _pools.get(place)
        if pool is None:
            pool = _pools[place] = Pool(
                place.name,
                place.path,
                places.boards.get(name),
                workers=place.workers,
                queue=place.queue,
                queue_timeout=place.queue_timeout,
            )
    return PoolExecutor(pool, cancel_running=cancel_running)


def names() -> list[str]:
    """The names of the pools, sorted: of the server, or of `declare` outside of one."""
    known = places.by_name if places.by_name is not None else _declared
    return sorted(known)


def declare(name: str, *, workers: int | None = None, initializer: str = "") -> None:
    """Describe a pool for use outside of a server. A server ignores this.

    name         its name
    workers      the number of processes; None: one for each CPU
    initializer  a function that each process calls at its start: "module:function"

    Its processes, if it has any, end; the next task starts new ones.
    """
    with _lock:
        _declared[name] = LocalPool(workers, initializer)
        old = _local.pop(name, None)
    if old is not None:
        old.close()


def _local_processes(name: str) -> LocalProcesses:
    with _lock:
        found = _local.get(name)
        if found is None:
            if not _local:
                atexit.register(close_local)
            found = _local[name] = LocalProcesses(name, _declared.get(name, LocalPool()))
        return found


def close_local() -> None:
    """End the processes of all local pools."""
    with _lock:
        pools = list(_local.values())
        _local.clear()
    for pool in pools:
        pool.close()


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return f"there is no pool {name!r}: the configuration declares no pools ([pools.NAME])"
    found = difflib.get_close_matches(str(name), known, 1)
    advice = f"; did you mean {found[0]!r}?" if found else ""
    return f"there is no pool {name!r}{advice} The pools are: {', '.join(sorted(known))}"
