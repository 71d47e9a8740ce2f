"""Requests after reductions are what the client could have sent, and the host program takes them as such."""

from collections.abc import Mapping

import msgspec
import numpy as np
import pytest

from jaxrank.manifest import Signature, TensorSpec
from serving.degradation.config import CandidatesStep, DegradationError, Reductions
from serving.degradation.reductions import (
    check_reductions,
    check_replacement,
    choose,
    of_candidates,
    rank_below,
    shorten,
    take_candidates,
)
from serving.host import HostProgramRunner
from serving.validation import validate
from tests.shared import Once
from tests.zoo import ZOO
from tests.zoo.converted import Converted, convert_once

Features = Mapping[str, np.ndarray]
ROWS = 40


@pytest.fixture(scope="module", params=["sparse_bags", "ragged_bags"])
def bags(request: pytest.FixtureRequest, once: Once) -> Converted:
    """A model whose candidates have sparse or ragged features."""
    return convert_once(next(m for m in ZOO if m.name == request.param), once)


def _checked(converted: Converted, features: Features) -> Features:
    return validate(features, converted.manifest.signature, converted.manifest.max_candidates)


def _block(converted: Converted, features: Features) -> np.ndarray:
    runner = HostProgramRunner(converted.bundle, converted.manifest)
    try:
        return runner.run(features).candidate
    finally:
        runner.close()


def test_taken_candidates_are_the_rows_of_all(bags: Converted) -> None:
    features = _checked(bags, bags.model.request(ROWS, seed=5))
    chosen = np.random.default_rng(5).random(ROWS) < 0.4
    taken = take_candidates(features, bags.manifest.signature, chosen)
    _checked(bags, taken)
    np.testing.assert_array_equal(_block(bags, taken), _block(bags, features)[chosen])


def test_histories_of_candidates(bags: Converted) -> None:
    """By the names of features, not of their parts."""
    signature = bags.manifest.signature
    first, *others = dict.fromkeys(spec.feature or spec.name for spec in signature.inputs)
    inputs = [
        msgspec.structs.replace(s, scope="request" if first in (s.feature, s.name) else "candidate")
        for s in signature.inputs
    ]
    history = {name: (1, "first") for name in (first, *others)}
    found = of_candidates(history, msgspec.structs.replace(signature, inputs=tuple(inputs)))
    assert list(found) == others


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_short_histories(bags: Converted, length: int, keep: str) -> None:
    """Against the same rows cut one by one in Python."""
    features = _checked(bags, bags.model.request(ROWS, seed=6))
    names = ["tags", "weights"] if bags.model.name == "sparse_bags" else ["similar", "words"]
    found, dropped = shorten(features, bags.manifest.signature, dict.fromkeys(names, (length, keep)))
    _checked(bags, found)
    expected_dropped = 0
    for name in names:
        if bags.model.name == "sparse_bags":
            rows = features[name][:, 0]
            held = [np.flatnonzero(rows == row) for row in range(ROWS)]
            kept = [ids[:length] if keep == "first" else ids[-length:] for ids in held]
            at = np.concatenate(kept)
            np.testing.assert_array_equal(found[name], features[name][at])
            np.testing.assert_array_equal(found[f"{name}_1"], features[f"{name}_1"][at])
        else:
            splits = features[f"{name}_1"]
            held = [features[name][a:b] for a, b in zip(splits, splits[1:], strict=False)]
            kept = [values[:length] if keep == "first" else values[-length:] for values in held]
            np.testing.assert_array_equal(found[name], np.concatenate(kept))
            np.testing.assert_array_equal(np.diff(found[f"{name}_1"]), [len(values) for values in kept])
        expected_dropped += sum(len(h) - len(k) for h, k in zip(held, kept, strict=True))
    assert dropped == expected_dropped


def test_an_open_dimension_is_cut() -> None:
    spec = TensorSpec(name="steps", dtype="int64", shape=(1, None), scope="request", tensor_name="steps:0")
    signature = Signature(name="s", method_name="", inputs=(spec,), outputs=())
    steps = np.arange(10).reshape(1, 10)
    for keep, expected in (("first", [0, 1, 2]), ("last", [7, 8, 9])):
        found, dropped = shorten({"steps": steps}, signature, {"steps": (3, keep)})
        assert found["steps"].tolist() == [expected] and dropped == 7
        assert shorten({"steps": steps}, signature, {"steps": (30, keep)})[1] == 0


def test_the_highest_priors_are_chosen() -> None:
    step = CandidatesStep(exact=3, prior="p", column=1)
    prior = np.array([[9, 0.5], [9, np.nan], [9, 0.9], [9, 0.5], [9, 0.5], [9, -np.inf]], np.float32)
    assert choose({"p": prior}, step).tolist() == [True, False, True, True, False, False]


@pytest.mark.parametrize("least", [0.25, 0.0, -3.0, 1e-30])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_rest_are_below_in_order(least: float, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    chosen = rng.random(5000) < 0.02
    exact = (least + rng.random((int(chosen.sum()), *shape))).astype(np.float32)
    exact.flat[3] = least
    order = rng.standard_normal(5000)
    found = rank_below(exact, chosen, order)
    assert found.shape == (5000, *shape) and found.dtype == np.float32
    np.testing.assert_array_equal(found[chosen], exact)
    rest = found[~chosen].ravel()
    assert rest.max() < exact.min() or least == 1e-30
    by_order = rest[np.argsort(-order[~chosen])]
    assert (np.diff(by_order) < 0).all()
    assert least <= 0 or rest.min() > 0


def test_a_score_that_is_not_a_number_is_no_floor() -> None:
    found = rank_below(
        np.array([np.nan, 0.5, -np.inf], np.float32), np.array([True, False, True, True]), np.zeros(4)
    )
    assert found[1] < 0.5 and np.isfinite(found[1])


def test_what_does_not_fit_is_named(bags: Converted) -> None:
    manifest = bags.manifest
    history = "tags_1" if bags.model.name == "sparse_bags" else "words_1"
    cases = {
        "no feature 'nothing'": Reductions({"nothing": (3, "first")}),
        "'price' has the fixed shape": Reductions({"price": (3, "first")}),
        "name the feature": Reductions({history: (3, "first")}),
        "no candidate input": Reductions({}, CandidatesStep(exact=3, prior="nothing")),
        "no numbers in column 4": Reductions({}, CandidatesStep(exact=3, prior="price", column=4)),
    }
    for text, wanted in cases.items():
        with pytest.raises(DegradationError, match=text):
            check_reductions(wanted, manifest)
    check_reductions(Reductions({}, CandidatesStep(exact=3, prior="price")), manifest)
    with pytest.raises(DegradationError, match="depend on all candidates"):
        check_reductions(
            Reductions({}, CandidatesStep(exact=3, prior="price")),
            msgspec.structs.replace(manifest, row_wise=False),
        )
    more = msgspec.structs.replace(
        manifest.signature, outputs=(*manifest.signature.outputs, manifest.signature.inputs[0])
    )
    with pytest.raises(DegradationError, match="outputs of the two models differ"):
        check_replacement(manifest, msgspec.structs.replace(manifest, signature=more))
