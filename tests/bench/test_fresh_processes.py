"""What is measured in a process of its own: its result, what it tells, and how it fails."""

import os
import signal

import pytest

from bench.processes import ProcessError, Status, fresh
from bench.results import ResultsError


def where(status: Status, offset: int) -> tuple[int, int]:
    """The process that runs it, and that which asked for it."""
    status("working")
    return os.getpid() + offset, os.getppid()


class Unpicklable(Exception):
    """As some libraries raise."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def fail(status: Status, how: str) -> None:
    """In one of several ways."""
    match how:
        case "ours":
            raise ResultsError("no results")
        case "theirs":
            raise Unpicklable("one", "two")
        case _:
            os.kill(os.getpid(), signal.SIGKILL)


def test_every_call_has_a_process() -> None:
    told: list[str] = []
    found = [fresh(where, 0, status=told.append) for _ in range(2)]
    assert len({os.getpid(), *(process for process, _ in found)}) == 3
    assert [parent for _, parent in found] == [os.getpid()] * 2 and told == ["working"] * 2


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        pytest.param("ours", ResultsError, "^no results$", id="an error"),
        pytest.param("theirs", RuntimeError, "^Unpicklable: one and two$", id="an error that stays there"),
        pytest.param("killed", ProcessError, "ended with status -9", id="no result"),
    ],
)
def test_a_process_that_fails(how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        fresh(fail, how)
