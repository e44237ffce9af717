"""The counts by which processes notice that another is gone; test_meeting.py has the processes."""

from __future__ import annotations

import pytest
import torch.distributed

from crlf.runtime import heartbeat, meeting
from crlf.runtime.heartbeat import LEFT, SILENT, Pulse


@pytest.fixture
def pulses(monkeypatch: pytest.MonkeyPatch) -> list[Pulse]:
    """Those of three ranks, whose store is kept by none of them, as under torchrun."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(meeting, "client", lambda place, timeout: store)
    monkeypatch.setattr(meeting, "place_of_store", lambda: ("", 0))
    return [Pulse(rank, 3, "group") for rank in range(3)]


def beats(pulses: list[Pulse], *ranks: int) -> dict[int, list[int]]:
    """The ranks that each finds gone, after one beat more than a gone rank is waited for."""
    found = {}
    for _ in range(SILENT + 1):
        found = {rank: pulses[rank].beat() for rank in ranks}
    return found


def test_nobody_is_gone_while_all_count(pulses: list[Pulse]):
    assert beats(pulses, 0, 1, 2) == {0: [], 1: [], 2: []}


def test_rank_0_finds_a_silent_rank_and_tells_the_others(pulses: list[Pulse]):
    beats(pulses, 0, 1, 2)
    assert beats(pulses, 0, 1) == {0: [2], 1: [2]}


def test_the_others_find_a_silent_rank_0(pulses: list[Pulse]):
    beats(pulses, 0, 1, 2)
    assert beats(pulses, 1, 2) == {1: [0], 2: [0]}


def test_a_silence_that_is_shorter_is_forgotten(pulses: list[Pulse]):
    for _ in range(3):
        for pulse in pulses:
            pulse.beat()
        assert not any(pulses[0].beat() or pulses[1].beat() for _ in range(SILENT - 1))


@pytest.mark.parametrize(("leaver", "stays"), [(2, 0), (0, 1)])
def test_a_rank_that_ended_in_order_is_not_gone(pulses: list[Pulse], leaver: int, stays: int):
    beats(pulses, 0, 1, 2)
    pulses[leaver].say(LEFT)
    others = sorted({0, 1, 2} - {leaver})
    assert beats(pulses, *others)[stays] == []


def test_a_rank_that_never_counted_is_gone(pulses: list[Pulse]):
    assert beats(pulses, 0, 1)[0] == [2]
    assert heartbeat.BEAT * SILENT == 60  # seconds: what the pages say
