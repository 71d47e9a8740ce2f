"""The host executor and the reader of requests under AddressSanitizer and UndefinedBehaviorSanitizer, where
`make sanitize` has built them (the build takes minutes)."""

from pathlib import Path

import pytest

from tests.host import hostile
from tests.native import sanitized

_SANITIZERS = "address,undefined"


@pytest.fixture
def core() -> Path:
    found = sanitized.built(_SANITIZERS)
    if found is None:
        pytest.skip("make sanitize builds the native core with sanitizers")
    return found


def test_hostile_inputs(core: Path, tmp_path: Path) -> None:
    """No read beyond memory, no undefined arithmetic, whatever a client sends to any operator."""
    calls = tmp_path / "calls"
    hostile.write_calls(calls, seed=11, per_operator=12)
    found = sanitized.run(_SANITIZERS, core, "tests.host.hostile_subject", str(calls))
    assert all(int(number) > 0 for number in found.split())


def test_damaged_requests(core: Path) -> None:
    """No read beyond a message."""
    found = sanitized.run(_SANITIZERS, core, "tests.native.messages_subject")
    assert all(int(number) > 1000 for number in found.split())


def test_many_threads(core: Path) -> None:
    assert sanitized.run(_SANITIZERS, core, "tests.host.threads_subject").strip() == "200 requests"
