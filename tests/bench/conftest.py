"""A model of the dense suite that takes seconds."""

import shutil
from pathlib import Path

import pytest

from bench import dense, dense_models
from bench.dense_build import build
from tests.shared import Once

TINY = dense_models.DenseModel(
    "tiny",
    lambda: dense_models.DIN(8, (16, 8), 3, 2, (16, 8)),
    {"user_history": (1, 6), "user_fields": (1, 3), "item_id": (None,), "item_fields": (None, 2)},
    True,
    "history 6 x 8",
)


@pytest.fixture(scope="module")
def work(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's models are built; the tiny one is there."""
    work = tmp_path_factory.mktemp("work")
    tiny = once("tiny", lambda directory: build(TINY, directory))
    return shutil.copytree(tiny, work, dirs_exist_ok=True)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite `dense` measures in two rounds in this process, which knows the tests' models."""
    monkeypatch.setattr(dense, "PROCESSES", 2)
    monkeypatch.setattr(dense, "fresh", lambda call, *arguments, status: call(status, *arguments))
