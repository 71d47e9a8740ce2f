"""A models directory with one healthy ranker."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def models_dir(ranker_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ranker as version 3."""
    path = tmp_path_factory.mktemp("models")
    (path / "ranker").mkdir()
    (path / "ranker" / "3").symlink_to(ranker_bundle)
    return path
