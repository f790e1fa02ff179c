"""The `h2` library's connection, as it is set up for our use."""

from __future__ import annotations

import pytest
from h2frames import PREFACE, Reader, settings

from servo.http.h2.hpack import FieldDecoder, FieldEncoder
from servo.http.h2.state_machine import StateMachine
from servo.http.limits import H2Limits


@pytest.mark.parametrize("tunnels", [False, True])
def test_the_limits_are_in_the_first_settings(tunnels: bool) -> None:
    limits = H2Limits(streams=7, window=70_000, frame=20_000, header_list=9_000)
    machine = StateMachine(limits, tunnels, FieldDecoder(limits.header_list))
    machine.initiate_connection()
    client = Reader().feed(machine.data_to_send())
    told = client.settings
    assert (told[3], told[4], told[5], told[6]) == (7, 70_000, 20_000, 9_000)
    assert told.get(8, 0) == int(tunnels)


def test_our_codecs_are_in_place() -> None:
    decoder = FieldDecoder(1000)
    machine = StateMachine(H2Limits(), False, decoder)
    assert machine.decoder is decoder
    assert isinstance(machine.encoder, FieldEncoder)
    machine.initiate_connection()
    machine.receive_data(PREFACE + settings({1: 100}))
    assert machine.encoder.header_table_size == 100
