"""A model of the dense suite that takes seconds."""

from pathlib import Path

import pytest

from bench import dense_models

TINY = dense_models.DenseModel(
    "tiny",
    lambda: dense_models.DIN(8, (16, 8), 3, 2, (16, 8)),
    {"user_history": (1, 6), "user_fields": (1, 3), "item_id": (None,), "item_fields": (None, 2)},
    True,
    "history 6 x 8",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's models are built."""
    return tmp_path_factory.mktemp("work")
