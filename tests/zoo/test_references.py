"""The zoo itself: every model saves, answers fresh requests, and mixes candidates only where it says so."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.shared import Once
from tests.zoo import ZOO, ZooModel
from tests.zoo.converted import save_once

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def artifact(once: Once) -> Callable[[ZooModel], Path]:
    """The path of a model that is saved once."""
    return lambda model: save_once(model, once)


def test_names_are_unique_and_every_style_is_there() -> None:
    assert len({m.name for m in ZOO}) == len(ZOO) >= 25
    assert {m.style for m in ZOO} == {
        "keras3", "tf2_module", "tf1_saved_model", "feature_columns", "frozen_graph", "tf1_checkpoint",
        "keras_file", "h5_file",
    }  # fmt: skip
    assert all(m.tolerance == 1e-5 or (m.tolerance == 1e-4 and m.reason) for m in ZOO)


@pytest.mark.parametrize("model", ZOO, ids=lambda m: m.name)
def test_answers_fresh_requests(model: ZooModel, artifact: Callable[[ZooModel], Path]) -> None:
    """Finite float32 with a row for each candidate, varying over them, neither saturated nor constant."""
    path = artifact(model)
    assert path.exists()
    for rows in (1, 3, 50):
        outputs = model.reference(path, model.request(rows, seed=rows))
        assert outputs
        for name, values in outputs.items():
            assert (len(values), values.dtype) == (rows, np.float32), name
            assert np.isfinite(values).all(), name
            if rows == 50:
                flat = values.reshape(rows, -1)
                assert (flat.std(axis=0) > 1e-3).all(), (name, flat.std(axis=0))
                # Scores that many candidates share would make every order right.
                assert len(np.unique(flat, axis=0)) > 25, name
                assert np.abs(values).max() < 50.0, name


@pytest.mark.parametrize("model", ZOO, ids=lambda m: m.name)
def test_requests_are_fresh(model: ZooModel) -> None:
    one, same, other = model.request(20, 1), model.request(20, 1), model.request(20, 2)
    assert all(np.array_equal(one[n], same[n]) for n in one)
    assert any(not np.array_equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("model", ZOO, ids=lambda m: m.name)
def test_mixes_candidates_only_where_it_says_so(
    model: ZooModel, artifact: Callable[[ZooModel], Path]
) -> None:
    """A row-wise model scores a candidate alone as among others. 1e-5: the order in which kernels sum depends
    on the number of rows."""
    path, rows = artifact(model), 8
    features = model.request(rows, seed=77)
    together = model.reference(path, features)
    errors = []
    for row in range(rows):
        alone = model.reference(path, model.take(features, row))
        errors += [np.abs(alone[n][0] - together[n][row]).max() for n in together]
    assert (max(errors) < 1e-5) == model.row_wise
