"""The screen of a sweep is for whoever looks: a closed pipe or terminal ends nothing."""

from __future__ import annotations

import io

import pytest

from fabric.console import PipedConsole
from fabric.display import Screen


class Closed(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("live", [True, False])
def test_a_sweep_goes_on_when_nobody_reads_any_more(live):
    with Screen(Closed(), live=live) as screen:
        for _ in range(3):
            screen.say("a line")
            screen.preparing("a stage", 0.5)
        assert screen._is_gone


def test_a_verb_is_told_that_nobody_reads():
    with pytest.raises(BrokenPipeError):
        PipedConsole(file=Closed()).print("a table")
