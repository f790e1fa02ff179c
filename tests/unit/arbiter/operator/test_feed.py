"""Kept records, and new records for followers."""

from __future__ import annotations

from typing import Any, cast

from servo.arbiter.operator.feed import Feed
from servo.control.server import Caller


class FakeCaller:
    def __init__(self) -> None:
        self.got: list[Any] = []
        self.following = self.gone = self.is_done = False

    def notes(self, records: list[Any]) -> None:
        self.got += records

    def note(self, record: Any) -> None:
        self.got.append(record)

    def done(self, _result: Any) -> None:
        self.is_done = True


def shown(feed: Feed, *, follow: bool) -> FakeCaller:
    caller = FakeCaller()
    feed.show(cast("Caller", caller), follow)
    return caller


def test_each_new_record_is_passed_on() -> None:
    feed = Feed(1, 10)
    seen: list[Any] = []
    feed.on_record = seen.append
    for number in range(3):
        feed.append({"number": number})
    assert [record["number"] for record in seen] == [0, 1, 2]


def test_the_newest_records_are_kept_within_the_bounds() -> None:
    feed = Feed(100, 1000)
    for number in range(1000):
        feed.append({"number": number, "text": "x" * 50})
    assert [record["number"] for record in feed.records] == list(range(980, 1000))
    feed.append({"number": 1000, "text": "x" * 5000})
    assert [record["number"] for record in feed.records] == [1000]
    for number in range(500):
        feed.append({"number": number, "text": ""})
    assert len(feed.records) == 100


def test_one_look() -> None:
    feed = Feed(2, 1000)
    for number in range(3):
        feed.append({"number": number})
    caller = shown(feed, follow=False)
    assert caller.got == [{"number": 1}, {"number": 2}]
    assert caller.is_done
    feed.append({"number": 3})
    assert len(caller.got) == 2


def test_followers_get_what_comes_until_they_are_gone() -> None:
    feed = Feed(2, 1000)
    feed.append({"number": 0})
    one, two = shown(feed, follow=True), shown(feed, follow=True)
    assert one.following
    assert not one.is_done
    feed.append({"number": 1})
    one.gone = True
    feed.append({"number": 2})
    assert [record["number"] for record in one.got] == [0, 1]
    assert [record["number"] for record in two.got] == [0, 1, 2]
