"""Signals that ask a run to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from trainers.interrupts import Interruptible, Terminated
from trainers.progress import Silence


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The test's own handlers go with it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_that_was_lost_is_raised_at_the_next_step(number: int, kind: type[BaseException]) -> None:
    """Raised where it comes; where that is a finaliser, which swallows it, the next step raises it again."""
    progress = Interruptible(Silence())
    progress.watch()
    progress.step({})

    class Finalised:
        def __del__(self) -> None:
            with suppress(BaseException):  # as the interpreter does
                os.kill(os.getpid(), number)

    Finalised()
    for told in (lambda: progress.step({}), lambda: progress.phase("training", 1)):
        with pytest.raises(kind):
            told()
