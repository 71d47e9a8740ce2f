"""The certificate's measures against SciPy and a count over all pairs; what it refuses, and what proves
nothing."""

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy import stats

from jaxrank import ranking
from jaxrank.certificate import CertificateError, Example, certify, load_examples, save_examples
from jaxrank.manifest import Certificate, OutputCertificate


def _scores(rng: np.random.Generator, rows: int, distinct: int) -> tuple[np.ndarray, np.ndarray]:
    """Two score lists with ties and inversions."""
    expected = rng.integers(-distinct, distinct, rows) * 0.37
    return expected, expected + rng.integers(-2, 3, rows) * 0.37


def _inversions_over_all_pairs(e: np.ndarray, f: np.ndarray, tolerance: float) -> tuple[int, int]:
    size = np.where(np.isinf(e), 0.0, np.maximum(np.abs(e), 1.0))
    above = e[None, :] < (e - tolerance * size)[:, None]
    not_above = ~(f[:, None] > f[None, :])
    return int((above & not_above).sum()), int(above.sum())


@pytest.mark.parametrize("seed", range(12))
def test_inversions_are_those_of_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, distinct = int(rng.integers(1, 300)), int(rng.integers(1, 400))
    expected, found = _scores(rng, rows, distinct)
    for tolerance in (0.0, 1e-5, 0.5):
        assert ranking.inversions(expected, found, tolerance) == _inversions_over_all_pairs(
            expected, found, tolerance
        )
    expected[rng.integers(0, rows, 3)] = [np.nan, np.inf, -np.inf]
    with np.errstate(invalid="ignore"):
        assert ranking.inversions(expected, found, 1e-5) == _inversions_over_all_pairs(expected, found, 1e-5)


def test_inversions_by_hand() -> None:
    expected = np.array([0.9, 0.5, 0.500001, 0.1])
    assert ranking.inversions(expected, expected, 1e-5) == (0, 5)  # the middle two are a tie
    assert ranking.inversions(expected, np.array([0.9, 0.6, 0.5, 0.1]), 1e-5) == (0, 5)
    assert ranking.inversions(expected, np.array([0.4, 0.5, 0.3, 0.1]), 1e-5) == (1, 5)
    assert ranking.inversions(expected, np.zeros(4), 1e-5) == (5, 5)  # a tie has lost TensorFlow's order
    assert ranking.inversions(np.array([1.0]), np.array([2.0]), 1e-5) == (0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_spearman_is_scipys(seed: int) -> None:
    expected, found = _scores(np.random.default_rng(seed), 200, 30)
    assert ranking.spearman(expected, found) == pytest.approx(stats.spearmanr(expected, found)[0])


def test_top_overlap_counts_ties() -> None:
    expected = np.array([3.0, 2.0, 2.0, 2.0, 1.0, np.nan])
    assert ranking.top_overlap(expected, expected[::-1].copy(), 1) == 0.0
    assert ranking.top_overlap(expected, np.array([3.0, 1.0, 1.0, 2.0, 0.0, np.nan]), 2) == 1.0
    assert ranking.top_overlap(expected, np.array([3.0, 1.0, 1.0, 1.0, 9.0, np.nan]), 2) == 0.5
    assert ranking.top_overlap(expected, np.array([0.0, 0.0, 0.0, 0.0, 0.0, np.nan]), 50) == 1.0


def _example(**outputs: np.ndarray) -> Example:
    return Example({"x": np.zeros(1)}, outputs)


def test_every_column_of_an_output_is_compared() -> None:
    """The first column is right, the second is upside down."""
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((200, 2)).astype(np.float32) * 1e-3
    found = np.stack([expected[:, 0], -expected[:, 1]], 1)
    (result,) = certify("t", [_example(y=expected)], [{"y": found}], tolerance=1e-2).outputs
    assert result.spearman == pytest.approx(-1.0)
    assert (result.top1_overlap, result.top10_overlap, result.top50_overlap) == (0.0, 0.0, 0.0)
    assert result.max_abs_error == pytest.approx(2 * np.abs(expected[:, 1]).max())


def test_inversions_are_summed_over_requests_and_columns() -> None:
    """Errors of 0.03 pass a tolerance of 0.04, and swap a pair 0.05 apart in one column."""
    expected = np.array([[0.0, 0.5], [0.10, 0.2], [0.15, 0.9]], np.float32)
    found = expected.copy()
    found[1:, 0] = [0.13, 0.12]
    with pytest.raises(CertificateError, match="'y' differs from TensorFlow's by 3.00e-02"):
        certify("t", [_example(y=expected)] * 2, [{"y": found}] * 2)
    (result,) = certify("t", [_example(y=expected)] * 2, [{"y": found}] * 2, tolerance=0.04).outputs
    assert (result.rows, result.inversions) == (3, 2)
    assert result.inversion_share == pytest.approx(2 / 12)
    assert result.top1_overlap == 0.0


def test_scores_beyond_the_tolerance() -> None:
    expected = np.linspace(0, 1, 50, dtype=np.float32)
    for other in (expected + 2e-5, np.where(np.arange(50) == 3, np.nan, expected), np.full(50, np.inf)):
        with pytest.raises(CertificateError, match="'y' differs from TensorFlow's by"):
            certify("t", [_example(y=expected)], [{"y": other.astype(np.float32)}])
    certify("t", [_example(y=expected)], [{"y": expected + np.float32(5e-6)}])
    # Relative beyond 1.
    certify("t", [_example(y=expected * 1e6)], [{"y": expected * np.float32(1e6) + np.float32(0.5)}], 1.0)


def test_nan_and_infinity_where_tensorflow_has_them_are_equal() -> None:
    expected = np.array([np.nan, np.inf, -np.inf, 0.5, 0.25], np.float32)
    (result,) = certify("t", [_example(y=expected)], [{"y": expected.copy()}]).outputs
    assert (result.max_abs_error, result.max_rel_error, result.inversions) == (0.0, 0.0, 0)
    for i, j in itertools.permutations(range(3), 2):
        found = expected.copy()
        found[i] = expected[j]
        with pytest.raises(CertificateError):
            certify("t", [_example(y=expected)], [{"y": found}])


@pytest.mark.parametrize(
    "outputs",
    [
        [np.full(7, 0.5, np.float32), np.full(200, 0.5, np.float32)],
        [np.full(7, np.nan, np.float32)],
        [np.tile(np.array([[1.0, 2.0]], np.float32), (9, 1))],
    ],
)
def test_outputs_that_never_change_prove_nothing(outputs: list[np.ndarray]) -> None:
    with pytest.raises(CertificateError, match="'y' is the same, .*proves nothing.*--examples"):
        certify("t", [_example(y=o) for o in outputs], [{"y": o} for o in outputs])


def test_shapes_and_dtypes_must_be_tensorflows() -> None:
    expected = np.arange(4, dtype=np.float32)
    for other in (expected[:, None], expected.astype(np.float64), expected[:1]):
        with pytest.raises(CertificateError, match="TensorFlow's is float32\\[4\\]"):
            certify("t", [_example(y=expected)], [{"y": other}])


def test_five_thousand_rows_take_no_time() -> None:
    """A million of pairs per output must not slow a conversion: the count is O(n log n)."""
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((5000, 32))
    (result,) = certify("t", [_example(y=expected)], [{"y": expected + 1e-7}]).outputs
    assert result.inversions == 0 and result.rows == 5000


def test_a_certificate_survives_json() -> None:
    output = OutputCertificate(
        output="y", rows=7, max_abs_error=1e-7, max_rel_error=2e-7, spearman=1.0, top1_overlap=1.0,
        top10_overlap=1.0, top50_overlap=1.0, inversions=3, inversion_share=0.01,
    )  # fmt: skip
    certificate = Certificate(stage="flax", tolerance=1e-5, requests=2, outputs=(output,))
    assert msgspec.json.decode(msgspec.json.encode(certificate), type=Certificate) == certificate


def test_examples_survive_the_bundle(tmp_path: Path) -> None:
    """Names with slashes (parts of composite features), strings of every kind, empty arrays."""
    strings = np.array([b"", b"a\0", "łódź".encode()], object)
    features = {"bag/indices": np.zeros((0, 2), np.int64), "s": strings, "x": np.ones((3, 2), np.float32)}
    save_examples(tmp_path, [Example(features, {"y": np.arange(3.0)})])
    (loaded,) = load_examples(tmp_path)
    assert loaded.features.keys() == features.keys() and loaded.rows == 3
    for name, value in features.items():
        np.testing.assert_array_equal(loaded.features[name], value)
        assert loaded.features[name].dtype == value.dtype
