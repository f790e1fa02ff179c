"""The control socket's protocol: valid and invalid lines, and limits on their size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.control import protocol
from servo.control.protocol import LineReader, LineTooLong, RequestError, parse_request


def line(command: str, **args: Any) -> bytes:
    return protocol.request_line(command, args).rstrip(b"\n")


@pytest.mark.parametrize(
    ("text", "command", "args"),
    [
        (b'{"command": "status"}', "status", {}),
        (b'{"command": "status", "args": {}}\r', "status", {}),
        (line("scale", to="+2"), "scale", {"to": "+2"}),
        (line("reload"), "reload", {"wait": True}),
        (line("stop", now=True), "stop", {"now": True, "wait": True}),
        (line("stack", slot=3), "stack", {"slot": 3}),
    ],
)
def test_requests(text: bytes, command: str, args: dict[str, Any]) -> None:
    request = parse_request(text)
    assert (request.command, request.args) == (command, args)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"GET / HTTP/1.1", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        (b"[" * 60_000, "not a line of JSON"),
        (b"{}", "not a request"),
        (b"[1]", "not a request"),
        (b'{"command": 7}', "not a request"),
        (b'{"command": "halt"}', "there is no command 'halt'; there are status, workers"),
        (b'{"command": "status", "args": []}', "args is not an object"),
        (line("status", verbose=True), "status takes no argument 'verbose'"),
        (line("stack"), "stack needs the argument 'slot'"),
        (line("stack", slot="1"), "slot is not a whole number"),
        (line("stack", slot=True), "slot is not a whole number"),
        (line("scale", to=3), "to is not text"),
        (line("stop", now="yes"), "now is not true or false"),
    ],
)
def test_invalid_requests(text: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_request(text)


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        *((name, False) for name in ("status", "workers", "requests", "config", "logs", "events")),
        *((name, True) for name in ("reload", "stop")),
    ],
)
def test_commands_that_change_the_server(command: str, changes: bool) -> None:
    assert parse_request(line(command)).changes is changes


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    try:
        request = parse_request(data)
    except RequestError:
        return  # the only error that bytes may cause
    assert request.command in protocol.COMMANDS


@given(
    st.lists(st.binary(max_size=40).filter(lambda data: b"\n" not in data), max_size=20),
    st.lists(st.integers(0, 900), max_size=8),
)
def test_any_split_gives_the_same_lines(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(each + b"\n" for each in lines)
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    reader, found = LineReader(), []
    for start, end in zip(bounds, bounds[1:], strict=False):
        reader.feed(data[start:end])
        while (taken := reader.take()) is not None:
            found.append(taken)
    assert found == lines
    assert len(reader) == 0


def test_a_line_without_end_is_cut_off() -> None:
    reader = LineReader()
    with pytest.raises(LineTooLong):  # noqa: PT012  which of them is too much is its affair
        for _ in range(100):
            reader.feed(b"x" * 10_000)
    assert len(reader) < 2 * protocol.MAX_REQUEST_BYTES


def test_too_many_lines_at_once_are_cut_off() -> None:
    with pytest.raises(LineTooLong, match="more than 32 requests"):
        LineReader().feed(b"\n" * 33)


def test_answers_are_one_line_whatever_they_say() -> None:
    nasty = {"text": "a\nb\r\u2028\u0085\x00é"}
    for data in (
        protocol.note_line(nasty),
        protocol.result_line(nasty),
        protocol.failure_line("refused", "a\nb", "c\nd"),
    ):
        assert data.count(b"\n") == 1
        assert len(data.splitlines()) == 1
        answer = protocol.parse_answer(data)
        assert answer.keys() == json.loads(data).keys()
    shown = "a\nb\\x0d\u2028\\x85\\x00é"
    assert protocol.parse_answer(protocol.note_line(nasty))["note"] == {"text": shown}


def test_no_answer_writes_to_a_terminal() -> None:
    """The peer at the socket may not be a Servo."""
    nasty = {"\x1b]0;title\x07": ["\x1b[2J", {"a": "\u202e\x9b"}, 7, None]}
    answer = protocol.parse_answer(protocol.result_line(nasty))
    assert answer["result"] == {"\\x1b]0;title\\x07": ["\\x1b[2J", {"a": "\\u202e\\x9b"}, 7, None]}


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request", b"{}", b"[]", b"7", b"\xff"])
def test_invalid_answers(data: bytes) -> None:
    with pytest.raises(RequestError):
        protocol.parse_answer(data)
