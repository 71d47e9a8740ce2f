"""The native hashes against TensorFlow's own op."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.native._core import (
    fingerprints,
    hash_bucket,
    hash_bucket_fast,
    hash_bucket_strong,
    keyed_hashes,
)


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


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=100), min_size=1, max_size=8),
    st.integers(1, 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
)
def test_other_hashes(strings: list[bytes], buckets: int, key: int) -> None:
    """The older hash, and the keyed one with any key."""
    out, texts = np.empty(len(strings), np.int64), tf.constant(strings, tf.string)
    hash_bucket(strings, buckets, out)
    old = tf.raw_ops.StringToHashBucket(string_tensor=texts, num_buckets=buckets)
    np.testing.assert_array_equal(out, old.numpy())
    hash_bucket_strong(strings, buckets, key % 2**64, 5, out)
    np.testing.assert_array_equal(out, tf.strings.to_hash_bucket_strong(texts, buckets, [key, 5]).numpy())


def test_whole_hashes() -> None:
    """What the buckets are made of: the same values before the remainder."""
    strings = [b"", b"a", b"some longer text" * 5]
    out = np.empty(3, np.uint64)
    buckets = np.empty(3, np.int64)
    fingerprints(strings, out)
    hash_bucket_fast(strings, 2**62, buckets)
    np.testing.assert_array_equal(out % np.uint64(2**62), buckets)
    keyed_hashes(strings, 1, 2, out)
    hash_bucket_strong(strings, 2**62, 1, 2, buckets)
    np.testing.assert_array_equal(out % np.uint64(2**62), buckets)
    with pytest.raises(ValueError, match="one output"):
        fingerprints(strings, np.empty(1, np.uint64))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="positive"):
        _ours([b"a"], 0)
    with pytest.raises(TypeError):
        _ours(["text"], 5)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one output"):
        hash_bucket_fast([b"a", b"b"], 5, np.empty(1, np.int64))
