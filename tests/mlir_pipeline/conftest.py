"""What the tests of the compiler share."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def bundle(ranker_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the compiled ranker to change."""
    shutil.copytree(ranker_bundle, tmp_path / "b")
    return tmp_path / "b"
