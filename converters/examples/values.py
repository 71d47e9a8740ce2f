"""Values of one feature, drawn to fit its domain."""

import numpy as np

from converters.errors import ConversionError
from converters.examples.domains import FeatureDomain

MAX_VALUES = 8
"""Most values of one row of a sparse, ragged or variable-length feature."""
_ODD = 0.125
"""Share of values outside of what a domain knows, and of rows without a value."""

_STRINGS = np.array(
    [b"a", b"7", b"B", b"some longer text", "été".encode(), "北京".encode(), b"", b"-3", b"x y"], object
)
_UNKNOWN_STRINGS = np.array([b"", "unknown \u2603".encode(), b"\xff\xfe", b" "], object)


def draw_values(
    rng: np.random.Generator, dtype: str, domain: FeatureDomain, shape: tuple[int, ...]
) -> np.ndarray:
    """Values of TensorFlow's `dtype` (object array of bytes for strings) in `shape`.

    Raises `ConversionError` for a domain that does not fit the dtype.
    """
    if dtype == "string":
        return _strings(rng, domain, shape)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if np.dtype(dtype).kind in "iu":
        return _integers(rng, np.dtype(dtype), domain, shape)
    return _numbers(rng, domain, shape).astype(dtype)


def with_empty(rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """Row lengths, one in eight of them 0, and at least one of seven or more."""
    empty = rng.random(len(lengths)) < _ODD
    if len(lengths) >= 7:
        empty[rng.integers(len(lengths))] = True
    return np.where(empty, 0, lengths)


def _popular(rng: np.random.Generator, size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Positions in `[0, size)`, the k-th most popular about 1/k as often as the first (Zipf's law). Which
    position is popular follows from the generator."""
    rank = (np.exp(rng.random(shape) * np.log(size + 1)) - 1).astype(np.int64)
    return (np.minimum(rank, size - 1) + rng.integers(size)) % size


def _strings(rng: np.random.Generator, domain: FeatureDomain, shape: tuple[int, ...]) -> np.ndarray:
    keys = domain.keys
    if keys is None or not len(keys):
        return rng.choice(_STRINGS, shape)
    if keys.dtype != object:
        raise ConversionError(f"the domain of {domain.name!r} has keys of {keys.dtype} for a string input")
    known = keys[_popular(rng, len(keys), shape)]
    if not domain.unknown:
        return known
    return np.where(rng.random(shape) < _ODD, rng.choice(_UNKNOWN_STRINGS, shape), known)


def _integers(
    rng: np.random.Generator, dtype: np.dtype, domain: FeatureDomain, shape: tuple[int, ...]
) -> np.ndarray:
    if domain.keys is not None and len(domain.keys):
        if domain.keys.dtype.kind not in "iu":
            raise ConversionError(
                f"the domain of {domain.name!r} has keys of {domain.keys.dtype} for an input of {dtype}"
            )
        values = domain.keys[_popular(rng, len(domain.keys), shape)].astype(np.int64)
        odd = rng.integers(0, 1 << 20, shape) if domain.unknown else None
    elif domain.ids is not None:
        low, high = domain.ids
        if high <= low:
            raise ConversionError(f"the domain of {domain.name!r} has no ids: [{low}, {high})")
        values = low + _popular(rng, high - low, shape)
        # The first and the last row of a table are where an off-by-one shows.
        values = np.where(rng.random(shape) < _ODD, rng.choice([low, high - 1], shape), values)
        odd = rng.choice([high, high + 1, 2 * high + 7], shape) if domain.out_of_range else None
    elif len(domain.boundaries):
        values, odd = np.floor(_numbers(rng, domain, shape)).astype(np.int64), None
        if not domain.negative:
            values = np.maximum(values, 0)
    else:
        values, odd = rng.integers(0, 100, shape), None
    if odd is not None:
        values = np.where(rng.random(shape) < _ODD, odd, values)
    if domain.negative and dtype.kind == "i":
        values = np.where(rng.random(shape) < _ODD, rng.choice([-1, -2, -17], shape), values)
    limits = np.iinfo(dtype)
    return np.clip(values, int(limits.min), int(min(limits.max, np.iinfo(np.int64).max))).astype(dtype)


def _numbers(rng: np.random.Generator, domain: FeatureDomain, shape: tuple[int, ...]) -> np.ndarray:
    if not len(domain.boundaries):
        normal = rng.standard_normal(shape)
        if domain.positive:
            normal = np.abs(normal)
        return np.where(rng.random(shape) < _ODD / 2, 0.0, normal)
    edges = np.unique(np.asarray(domain.boundaries, np.float32))
    middles = (edges[1:] + edges[:-1]) / 2
    beyond = max(float(np.ptp(edges)), 1.0)
    # Features are float32: the neighbours of a boundary are its float32 neighbours.
    # A denormal neighbour of 0 would be 0 to TensorFlow.
    tiny = np.finfo(np.float32).tiny
    below, above = np.nextafter(edges, np.float32(-np.inf)), np.nextafter(edges, np.float32(np.inf))
    below, above = np.where(edges == 0, -tiny, below), np.where(edges == 0, tiny, above)
    near = np.concatenate([edges, below, above, middles, [edges[0] - beyond, edges[-1] + beyond]])
    spread = rng.uniform(edges[0] - beyond, edges[-1] + beyond, shape)
    return np.where(rng.random(shape) < 0.5, rng.choice(near, shape), spread)
