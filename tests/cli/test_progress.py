"""Commands that a signal ends."""

import os
import signal

import pytest

from jaxrank.cli.progress import stages


class _SignalledWhereErrorsAreDropped:
    """Python drops what a finalizer raises, as C code does with callbacks."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self._number)
        _noticed()


def _noticed() -> None:
    """Signals are handled between a function's steps: in this one, if not before."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_whose_exception_is_dropped_ends_the_command_at_its_next_stage(
    sent: signal.Signals, code: int
) -> None:
    before = signal.getsignal(sent)
    with pytest.raises(SystemExit) as ended, stages() as progress:
        progress("one")
        signalled = _SignalledWhereErrorsAreDropped(sent)
        del signalled
        progress("two")
        pytest.fail("the second stage ran")
    assert ended.value.code == code
    assert signal.getsignal(sent) == before
