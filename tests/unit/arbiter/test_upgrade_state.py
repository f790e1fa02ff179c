"""The encoding of the state that one program passes to the next one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.arbiter.upgrade_state import (
    STATE_VERSION,
    Handover,
    OldWorker,
    UnreadableStateError,
    UpgradeState,
    decode_state,
    encode_state,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
NUMBERS = st.integers(0, 2**31)


@given(
    workers=st.lists(
        st.builds(OldWorker, NUMBERS, st.integers(-1, 9), st.floats(0, 1e9), st.binary())
    ),
    numbers=st.lists(NUMBERS),
    sections=st.dictionaries(st.text(), VALUES),
)
def test_a_state_comes_back_as_it_was(
    workers: list[OldWorker], numbers: list[int], sections: dict[str, Any]
) -> None:
    state = UpgradeState(
        "1.2.3", "3.13.1", numbers, [sections], [], workers, numbers, b"\0{}", 7, numbers, sections
    )
    assert decode_state(encode_state(state)) == state


def state() -> UpgradeState:
    return UpgradeState(
        servo="1.2.3",
        python="3.13.1",
        signal_mask=[15],
        listeners=[{"fd": 3}],
        metrics_listeners=[],
        workers=[OldWorker(100, 5, 30.0)],
        helpers=[],
        retire=b"",
        guard=-1,
        descriptors=[3, 5],
        inner={"supervisor": {"target": 2}},
    )


def test_the_outer_part_of_another_version_can_be_read() -> None:
    values = json.loads(encode_state(state()))
    values["version"] = STATE_VERSION + 1
    values["inner"] = {"everything": "else"}
    values["more"] = True
    found = decode_state(json.dumps(values).encode())
    assert found.listeners == [{"fd": 3}]
    assert found.workers == [OldWorker(100, 5, 30.0)]
    assert found.program == "Servo 1.2.3 on Python 3.13.1"
    with pytest.raises(UnreadableStateError, match=rf"^its version is {STATE_VERSION + 1}, and"):
        found.section("everything")


def test_a_section_that_is_missing() -> None:
    assert state().section("supervisor") == {"target": 2}
    with pytest.raises(UnreadableStateError, match=r"^it has no section 'molds'$"):
        state().section("molds")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"format": "something else"}',
        encode_state(state())[:-9],
        encode_state(state()).replace(b'"guard": -1', b'"guard": null'),
        encode_state(state()).replace(b'[[100, 5, 30.0, ""]]', b"[[100, 5]]"),
    ],
)
def test_a_damaged_state(data: bytes) -> None:
    with pytest.raises(UnreadableStateError, match=r"^it"):
        decode_state(data)


def test_descriptors_are_collected() -> None:
    handover = Handover()
    assert [handover.pass_on(fd) for fd in (5, -1, 3, 5)] == [5, -1, 3, 5]
    assert handover.descriptors == {3, 5}
