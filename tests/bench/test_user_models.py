"""A bundle or a SavedModel of one's own in the suites."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench import dense, dense_threads
from bench.dense import largest_error
from bench.dense_build import Scores
from bench.dense_threads import Threads
from bench.user_models import UserModelError, model_name, open_model, take_candidates
from jaxrank import bundle as files
from jaxrank.manifest import Signature, TensorSpec
from tests import models

pytestmark = pytest.mark.filterwarnings("ignore")


def _of(bundle: Path, copy: Path, source: str) -> Path:
    """A copy of the bundle whose manifest names another source."""
    shutil.copytree(bundle, copy)
    manifest = files.read_manifest(copy)
    named = msgspec.structs.replace(manifest.source, path=source)
    files.write_manifest(copy, msgspec.structs.replace(manifest, source=named))
    return copy


def test_a_bundle_is_measured_on_its_own_requests(
    ranker_bundle: Path, ranker_saved_model: Path, tmp_path: Path
) -> None:
    """Both ways to know TensorFlow's scores give the same."""
    model = open_model(ranker_bundle, tmp_path / "work", saved_model=ranker_saved_model)
    assert model.name == "ranker" and model.built.bundle == ranker_bundle and not model.built.no_source
    scores = Scores(model, model.built)
    for rows, seed in ((3, 0), (40, 1), (5000, 2)):
        features, expected = scores.request(rows, seed)
        known = model.example(rows, seed)
        assert len(features["item_id"]) == rows and len(features["user_city"]) == 1
        assert all(np.array_equal(features[name], value) for name, value in known.features.items())
        assert largest_error([*expected.values()], [known.outputs[n] for n in expected]) <= 1e-5
    prices = [model.request(200, seed)["item_price"] for seed in (0, 1, 0)]
    assert np.array_equal(prices[0], prices[2]) and not np.array_equal(prices[0], prices[1])
    with pytest.raises(UserModelError, match="at most 5000 candidates"):
        scores.request(5001, 0)


def test_engines_that_need_the_source_are_listed(
    ranker_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TensorFlow's model, what runs the bundle is measured, against the certificate's scores."""
    monkeypatch.setattr(dense, "PROCESSES", 2)
    bundle = _of(ranker_bundle, tmp_path / "models" / "mine" / "7", "gone")
    out = tmp_path / "out" / "dense.json"
    arguments = ["--quick", "--sizes", "7", "6000", "--work", str(tmp_path / "work"), "--out", str(out)]
    with pytest.raises(SystemExit):
        dense.main([str(bundle), "--models", "din", *arguments])
    dense.main([str(bundle), *arguments[:3], *arguments[4:]])
    document = json.loads(out.read_text())
    assert document["command"] == f"python -m bench dense {bundle} --quick --sizes 7"
    figures = {f["name"]: f for f in document["figures"]}
    assert {"mine/jaxrank/7", "mine/jax/7", "mine/mflop_per_candidate"} <= set(figures)
    assert figures["max_abs_error"]["value"] <= 1e-5
    assert "Student's over 2 processes" in figures["mine/jaxrank/7"]["note"]
    missing = {m["name"]: m["why"] for m in document["not_measured"]}
    for engine in ("tensorflow", "tensorflow_xla", "onnxruntime", "openvino"):
        assert (
            "gone, which the bundle was made of, is not here; give --saved-model" in missing[f"mine/{engine}"]
        )


def test_tensorflows_threads_are_tried_before_anything_is_timed(
    ranker_bundle: Path, ranker_saved_model: Path, tmp_path: Path
) -> None:
    """In processes of their own: here TensorFlow runs already. Without TensorFlow's model there is nothing to
    try."""
    arguments = [
        str(ranker_bundle),
        "--saved-model",
        str(ranker_saved_model),
        "--work",
        str(tmp_path / "work"),
    ]
    found = dense_threads.fastest(arguments, [Threads(1, 1)])
    assert found == (Threads(1, 1), "1 intra-op and 1 inter-op threads, the fastest of 1 settings")
    bundle = _of(ranker_bundle, tmp_path / "mine", "gone")
    assert not dense_threads._calls(dense.parse([str(bundle), "--work", str(tmp_path / "work")]))


def test_a_source_above_the_bundle_is_found(
    ranker_bundle: Path, ranker_saved_model: Path, tmp_path: Path
) -> None:
    bundle = _of(ranker_bundle, tmp_path / "models" / "mine" / "7", "theirs")
    (tmp_path / "theirs").symlink_to(ranker_saved_model)
    assert open_model(bundle, tmp_path / "work").built.saved == tmp_path / "theirs"


def test_a_source_that_gives_other_scores_is_not_taken(ranker_bundle: Path, tmp_path: Path) -> None:
    models.save_ranker(tmp_path / "other", seed=1)
    model = open_model(ranker_bundle, tmp_path / "work", saved_model=tmp_path / "other")
    assert "is not what the bundle was made of: its scores differ by" in model.built.no_source
    with pytest.raises(UserModelError, match="is not what the bundle was made of"):
        _ = model.built.saved


def test_a_saved_model_is_converted_and_compiled_once(work: Path, tmp_path: Path) -> None:
    """The tiny model of the suite `dense`, as somebody else's."""
    saved = shutil.copytree(work / "tiny" / "saved_model", tmp_path / "theirs")
    model = open_model(saved, tmp_path / "work")
    assert model.name == "theirs" and model.request_side and model.built.saved == saved
    assert model.built.manifest.target("cpu") is not None
    said: list[str] = []
    again = open_model(saved, tmp_path / "work", said.append)
    assert not said and again.built.manifest.digest == model.built.manifest.digest


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("absent", "absent does not exist; give a bundle or a SavedModel", id="absent"),
        pytest.param(".", "is not a TensorFlow model", id="neither"),
        pytest.param("bare", "has no examples .*jaxrank convert --examples FILE", id="no examples"),
    ],
)
def test_what_cannot_be_measured_says_why(
    path: str, message: str, ranker_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(ranker_bundle, tmp_path / "bare")
    (bundle / files.EXAMPLES).unlink()
    files.write_manifest(bundle, files.read_manifest(bundle))
    with pytest.raises(SystemExit, match=message):
        dense.main(
            [str(tmp_path / path), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "x.json")]
        )
    assert not (tmp_path / "x.json").exists()


def test_names() -> None:
    assert model_name(Path("models/ranker/3")) == "ranker"
    assert model_name(Path("saved model")) == "saved_model"


def _spec(name: str, part: str, feature: str, shape: tuple[int | None, ...]) -> TensorSpec:
    return msgspec.convert(
        {
            "name": name,
            "dtype": "int64",
            "shape": shape,
            "scope": "candidate",
            "tensor_name": "",
            "part": part,
        }
        | {"feature": feature},
        TensorSpec,
    )


def test_candidates_of_composite_features() -> None:
    """Rows 2, 0 and 2 again of a sparse feature with [5, 6], [], [7] and of a ragged one with
    [[1, 2]], [], [[3], [4]]."""
    inputs = (
        _spec("i", "sparse_indices", "s", (None, 2)),
        _spec("v", "sparse_values", "s", (None,)),
        _spec("d", "sparse_shape", "s", (2,)),
        _spec("outer", "row_splits", "r", (None,)),
        _spec("inner", "row_splits", "r", (None,)),
        _spec("flat", "flat_values", "r", (None,)),
    )
    signature = Signature(name="", method_name="", inputs=inputs, outputs=())
    features = {
        "i": np.array([[0, 0], [0, 3], [2, 1]]),
        "v": np.array([5, 6, 7]),
        "d": np.array([3, 4]),
        "outer": np.array([0, 1, 1, 3]),
        "inner": np.array([0, 2, 3, 4]),
        "flat": np.array([1, 2, 3, 4]),
    }
    taken = take_candidates(signature, features, np.array([2, 0, 2]))
    assert {name: value.tolist() for name, value in taken.items()} == {
        "i": [[0, 1], [1, 0], [1, 3], [2, 1]],
        "v": [7, 5, 6, 7],
        "d": [3, 4],
        "outer": [0, 2, 3, 5],
        "inner": [0, 1, 2, 4, 5, 6],
        "flat": [3, 4, 1, 2, 3, 4],
    }
