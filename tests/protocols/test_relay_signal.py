"""When the loss of a relay's signal and its return are facts."""

from __future__ import annotations

from accelerator.protocols.relay_signal import FIRST_NS, SILENCE_NS, Signal, State

S = 1_000_000_000


def test_loss_and_return() -> None:
    signal = Signal()
    assert signal.update(10 * S, 0, is_wanted=False) is None
    assert signal.update(11 * S, 0, is_wanted=True) is State.WAITING
    assert signal.update(12 * S, 12 * S, is_wanted=True) is State.LIVE
    assert signal.update(12 * S + SILENCE_NS - 1, 12 * S, is_wanted=True) is None
    assert signal.update(12 * S + SILENCE_NS, 12 * S, is_wanted=True) is State.SILENT
    assert signal.update(20 * S, 12 * S, is_wanted=True) is None
    assert signal.update(21 * S, 21 * S, is_wanted=True) is State.LIVE


def test_what_never_came_is_lost_after_a_while() -> None:
    signal = Signal()
    signal.update(S, 0, is_wanted=True)
    assert signal.update(S + FIRST_NS - 1, 0, is_wanted=True) is None
    assert signal.update(S + FIRST_NS, 0, is_wanted=True) is State.SILENT


def test_what_nobody_asks_for_is_not_missed() -> None:
    signal = Signal()
    signal.update(S, S, is_wanted=True)
    assert signal.update(9 * S, S, is_wanted=False) is State.IDLE


def test_an_input_that_begins_anew_has_not_lost_its_signal() -> None:
    """A reload made the input anew, whose counters began at 0, and an event told a loss that nobody saw."""
    signal = Signal()
    signal.update(10 * S, 10 * S, is_wanted=True)
    assert signal.update(10 * S + 1, 0, is_wanted=True) is None
    assert signal.state is State.LIVE
