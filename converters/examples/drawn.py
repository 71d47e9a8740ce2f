"""Requests drawn at random to fit the signature and each input's domain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from converters.errors import ConversionError
from converters.examples.composites import composites, parts_named
from converters.examples.domains import Domain, ExampleDomain, FeatureDomain
from converters.examples.serialized import serialized_examples
from converters.examples.values import MAX_VALUES, draw_values, with_empty
from jaxrank.certificate import GROUP_ROWS
from jaxrank.manifest import Signature, TensorSpec

SEED = 20240501


def draw(
    signature: Signature, domains: Sequence[Domain], max_candidates: int, *, seed: int = SEED
) -> list[dict[str, np.ndarray]]:
    """Two requests each of 1, 7, 200 and `max_candidates` candidates.

    Domains are found by the name of the input, or of the composite feature; an input without one takes what
    `FeatureDomain` says of none. Known values are drawn with popularity falling as 1/rank, so they repeat.
    One row in eight of a padded, sparse or ragged feature is empty, and at least one of every request that
    has seven. Equal arguments give equal requests.

    Raises `ConversionError` for a domain that names no input.
    """
    by_name = {d.name: d for d in domains}
    known = {t.feature or t.name for t in signature.inputs}
    if by_name.keys() - known:
        raise ConversionError(
            f"domains for {', '.join(sorted(by_name.keys() - known))}, which are no inputs; the inputs are: "
            f"{', '.join(sorted(known))}"
        )
    rng = np.random.default_rng(seed)
    sizes = [n for n in GROUP_ROWS if n < max_candidates] + [max_candidates]
    return [_request(rng, signature, by_name, rows) for rows in sizes for _ in range(2)]


def _request(
    rng: np.random.Generator, signature: Signature, domains: dict[str, Domain], candidates: int
) -> dict[str, np.ndarray]:
    features: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        if spec.part != "rows":
            continue
        rows = 1 if spec.scope == "request" else candidates
        domain = domains.get(spec.name) or FeatureDomain(name=spec.name)
        if isinstance(domain, ExampleDomain):
            features[spec.name] = serialized_examples(rng, domain, rows)
        else:
            shape = (rows, *(d or MAX_VALUES for d in spec.shape[1:]))
            features[spec.name] = _rows(rng, spec.dtype, domain, shape)
    features.update(_composite_features(rng, signature, domains, candidates))
    return features


def _rows(rng: np.random.Generator, dtype: str, domain: FeatureDomain, shape: tuple[int, ...]) -> np.ndarray:
    values = draw_values(rng, dtype, domain, shape)
    if domain.pad is not None and len(shape) > 1 and shape[1]:
        lengths = with_empty(rng, rng.integers(1, shape[1] + 1, shape[0]))
        values[np.arange(shape[1]) >= lengths[:, None]] = domain.pad
    return values


@dataclass(frozen=True)
class _Layout:
    """Where the values of a composite feature lie: its indices and shape, or its row splits."""

    arrays: tuple[np.ndarray, ...]
    values: int


def _composite_features(
    rng: np.random.Generator, signature: Signature, domains: Mapping[str, Domain], candidates: int
) -> dict[str, np.ndarray]:
    features: dict[str, np.ndarray] = {}
    layouts: dict[str, _Layout] = {}
    found = composites(signature.inputs)
    domain_of = {name: domains.get(name) or FeatureDomain(name=name) for name in found}
    # A feature with another's layout comes after it.
    for name, domain in sorted(
        domain_of.items(), key=lambda d: getattr(d[1], "structure_of", None) is not None
    ):
        parts = found[name]
        if isinstance(domain, ExampleDomain):
            raise ConversionError(f"{name!r} is sparse or ragged: it cannot take serialized examples")
        rows = 1 if parts[0].scope == "request" else candidates
        sparse = bool(parts_named(parts, "sparse_indices"))
        if domain.structure_of is None:
            layout = _sparse_layout(rng, parts, rows) if sparse else _ragged_layout(rng, parts, rows)
        elif domain.structure_of in layouts:
            layout = layouts[domain.structure_of]
        else:
            raise ConversionError(
                f"the domain of {name!r} has the structure of {domain.structure_of!r}, which is no composite "
                "feature with a structure of its own"
            )
        layouts[name] = layout
        kinds = ("sparse_indices", "sparse_shape") if sparse else ("row_splits",)
        placed = [spec for kind in kinds for spec in parts_named(parts, kind)]
        for spec, array in zip(placed, layout.arrays, strict=True):
            features[spec.name] = array.astype(spec.dtype)
        (values,) = parts_named(parts, "sparse_values" if sparse else "flat_values")
        shape = (layout.values, *(d or 1 for d in values.shape[1:]))
        features[values.name] = draw_values(rng, values.dtype, domain, shape)
    return features


def _sparse_layout(rng: np.random.Generator, parts: Sequence[TensorSpec], rows: int) -> _Layout:
    """A SparseTensor `[rows, 8]` (`[rows, 1, 8]` at rank 3), in row-major order, with gaps in every other
    row."""
    (indices,) = parts_named(parts, "sparse_indices")
    rank = indices.shape[1]
    if rank is None or rank < 2:
        raise ConversionError(
            f"{indices.name!r} has shape {list(indices.shape)}; only sparse features of a known rank of at "
            "least 2 are drawn: give recorded requests with --examples"
        )
    lengths = _lengths(rng, rows)
    cells = [
        np.sort(rng.choice(MAX_VALUES, length, replace=False)) if row % 2 else np.arange(length)
        for row, length in enumerate(lengths.tolist())
    ]
    row_of = np.repeat(np.arange(rows), lengths)
    between = [np.zeros(len(row_of), np.int64)] * (rank - 2)
    positions = np.stack([row_of, *between, np.concatenate(cells).astype(np.int64)], 1)
    return _Layout((positions, np.array([rows, *[1] * (rank - 2), MAX_VALUES])), len(row_of))


def _ragged_layout(rng: np.random.Generator, parts: Sequence[TensorSpec], rows: int) -> _Layout:
    """Row splits; each further level divides every value of the one above again."""
    splits = [np.concatenate([[0], np.cumsum(_lengths(rng, rows))])]
    for _ in parts_named(parts, "row_splits")[1:]:
        lengths = rng.integers(0, 4, int(splits[-1][-1]))
        splits.append(np.concatenate([[0], np.cumsum(lengths)]))
    return _Layout(tuple(splits), int(splits[-1][-1]))


def _lengths(rng: np.random.Generator, rows: int) -> np.ndarray:
    return with_empty(rng, rng.integers(1, MAX_VALUES + 1, rows))
