"""Which pools a process can use."""

from __future__ import annotations

from servo.pools.places import Place, Places
from servo.settings.sections.pools import PoolSettings


def test_a_process_enters_the_pools_of_its_generation():
    places = Places()
    assert places.by_name is None
    places.refuse("not here")
    assert places.refusal == "not here"
    places.directory = "/d"
    places.enter({"ml": PoolSettings(workers=3, queue=7, queue_timeout=1.5)})
    assert places.refusal == ""
    assert places.by_name == {"ml": Place("ml", "/d/ml.sock", 3, 7, 1.5)}
