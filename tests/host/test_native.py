"""The native hash against TensorFlow's own op."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.native._core import hash_bucket_fast


def _ours(strings: list[bytes], buckets: int) -> np.ndarray:
    out = np.empty(len(strings), np.int64)
    hash_bucket_fast(strings, buckets, out)
    return out


def _tensorflow(strings: list[bytes], buckets: int) -> np.ndarray:
    return tf.strings.to_hash_bucket_fast(tf.constant(strings, tf.string), buckets).numpy()


@pytest.mark.parametrize("buckets", [1, 7, 1000, 2**31, 2**62])
def test_every_length(buckets: int) -> None:
    """Every branch of the hash: lengths from 0 through several 64-byte blocks."""
    rng = np.random.default_rng(buckets % 1000)
    strings = [rng.bytes(n) for n in range(300)]
    np.testing.assert_array_equal(_ours(strings, buckets), _tensorflow(strings, buckets))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8), st.integers(1, 2**63 - 1))
def test_any_bytes(strings: list[bytes], buckets: int) -> None:
    np.testing.assert_array_equal(_ours(strings, buckets), _tensorflow(strings, buckets))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="positive"):
        _ours([b"a"], 0)
    with pytest.raises(TypeError):
        _ours(["text"], 5)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one output"):
        hash_bucket_fast([b"a", b"b"], 5, np.empty(1, np.int64))
