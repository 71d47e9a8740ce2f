"""Versions of the ranker that differ."""

import shutil
from pathlib import Path

import pytest

from tests.serving.lifecycle.versions import AddVersion, scale_weights


@pytest.fixture(scope="session")
def add_version(ranker_bundle: Path) -> AddVersion:
    """`(models_dir, model, version, factor)`: the ranker as a version of a model, its weights multiplied."""

    def add(models_dir: Path, model: str, version: int, factor: float = 1.0) -> Path:
        work = models_dir.with_name(f"{models_dir.name}-{model}-{version}")
        shutil.copytree(ranker_bundle, work)
        if factor != 1.0:
            scale_weights(work, factor)
        (models_dir / model).mkdir(parents=True, exist_ok=True)
        return work.rename(models_dir / model / str(version))

    return add
