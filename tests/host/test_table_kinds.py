"""Lookups of the native executor in every kind of table, with and without deltas over it: NumPy's bits."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from jaxrank.host_program import HOST_SCHEMA_VERSION, BlockColumn, HostOperator, HostProgram
from serving.errors import InvalidRequestError
from serving.host.native import NativeProgram
from serving.host.operators import OPERATORS, Lookups
from serving.tables import Combiner, RowFormat, Table
from tests.host.one_operator import run_natively
from tests.tables import table_of

_ROWS, _DIM = 300, 5
_KINDS = [
    pytest.param(row_format, keyed, changed, id=f"{row_format}{'-keyed' * keyed}{'-changed' * changed}")
    for row_format in ("f32", "f16", "bf16", "int8", "f64")
    for keyed, changed in itertools.product((False, True), (False, True))
]


def _table(row_format: RowFormat, keyed: bool, changed: bool) -> tuple[Table, np.ndarray]:
    """A table, and ids of it; where it has keys, of others too, which give its default row."""
    rng = np.random.default_rng(3)
    keys = rng.choice(2**62, _ROWS, replace=False) - 2**61
    rows = rng.normal(size=(_ROWS, _DIM))
    default = ("zeros" if row_format == "f64" else "mean") if keyed else "error"
    table = table_of(rows, row_format, keys if keyed else None, default=default)
    ids = keys if keyed else np.arange(_ROWS)
    if changed:
        new = table.encode(rng.normal(size=(_ROWS // 3, _DIM)))
        more = np.append(ids[: _ROWS // 3 - 1], 77) if keyed else np.array(ids[::3])
        deleted = ids[-20:] if keyed else ids[:0]
        change = (more, new, deleted, new[0] if keyed else None)
        table = Table(table.native.with_changes(None, [change]), table.path, table.dtype)
    return table, np.append(ids, [77, 1]) if keyed else ids


def _assert_same(op: str, lookups: Lookups, inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> None:
    expected = OPERATORS[op](lookups, *inputs, **attrs)
    assert isinstance(expected, np.ndarray)
    (found,) = run_natively(op, inputs, attrs, lookups=lookups)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if expected.dtype == np.float64:  # not combined by the table's kernels
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)
    else:
        assert found.tobytes() == expected.tobytes(), (op, attrs)


@pytest.mark.parametrize(("row_format", "keyed", "changed"), _KINDS)
def test_lookups_and_bags(row_format: RowFormat, keyed: bool, changed: bool) -> None:
    rng = np.random.default_rng(4)
    table, ids = _table(row_format, keyed, changed)
    lookups = Lookups(tables={"t": table}, vocabularies={})
    for max_norm in (None, 1.5):
        wanted = rng.choice(ids, (40, 3))
        attrs = {"table": "t", "max_norm": max_norm}
        _assert_same("embedding_lookup", lookups, [wanted], attrs)
        if not keyed:
            wrapped = {**attrs, "negative_ids": "wrap"}
            _assert_same("embedding_lookup", lookups, [wanted.astype(np.int32) - _ROWS // 2], wrapped)
    combiners: tuple[Combiner, ...] = ("sum", "mean", "sqrtn")
    for combiner, weighted, max_norm in itertools.product(combiners, (False, True), (None, 1.5)):
        indices = np.argwhere(rng.random((30, 20)) < 0.4)
        weights = [rng.normal(size=len(indices))] * weighted
        attrs = {"table": "t", "combiner": combiner, "max_norm": max_norm}
        inputs = [indices, rng.choice(ids, len(indices)), np.array([30, 20]), *weights]
        _assert_same("embedding_bag", lookups, inputs, attrs)
        order = rng.permutation(len(indices))  # rows in any order, and of two dimensions
        indices = np.insert(indices, 1, 0, axis=1)
        inputs = [indices[order], inputs[1][order], np.array([30, 2, 20]), *(w[order] for w in weights)]
        _assert_same("embedding_bag", lookups, inputs, {**attrs, "safe": True, "default_id": int(ids[4])})


def _columns(table: Table, per_candidate: int) -> NativeProgram:
    """Rows of `per_candidate` ids beside each other in the candidates' block, between columns of others."""
    width = per_candidate * table.dim
    operators = (
        HostOperator(
            op="embedding_lookup", name="", inputs=("ids",), outputs=("rows",), scope="candidate",
            attrs={"table": "t"},
        ),
    )  # fmt: skip
    columns = tuple(
        BlockColumn(tensor=name, feature=name, scope="candidate", offset=at, shape=(size,), dtype="float32")
        for name, at, size in (("before", 0, 1), ("rows", 1, width), ("after", 1 + width, 2))
    )
    program = HostProgram(schema_version=HOST_SCHEMA_VERSION, operators=operators, columns=columns)
    features = {"before": "float32", "ids": "int64", "after": "float32"}
    return NativeProgram(program, features, {"rows": {"ids"}}, {"t": table}, {})


def _features(ids: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(ids))
    before, after = (rng.random((len(ids), n)).astype(np.float32) for n in (1, 2))
    return {"before": before, "ids": ids, "after": after}


@pytest.mark.parametrize("per_candidate", [1, 3, 1500])
def test_rows_go_to_their_columns(per_candidate: int) -> None:
    """Also more of them than lookups take at once, and so many that threads share them."""
    table, ids = _table("bf16", keyed=True, changed=True)
    native = _columns(table, per_candidate)
    for candidates in (0, 1, 7, 90_000 // per_candidate):
        features = _features(np.random.default_rng(candidates).choice(ids, (candidates, per_candidate)))
        _, block, _ = native.run(features, candidates)
        rows = np.empty((features["ids"].size, table.dim), np.float32)
        table.lookup(features["ids"].ravel(), rows)
        rows = rows.reshape(candidates, per_candidate * table.dim)
        np.testing.assert_array_equal(block, np.hstack([features["before"], rows, features["after"]]))


def test_the_first_bad_id_of_a_shared_lookup_is_refused() -> None:
    """Pieces of it run in any order."""
    table, _ = _table("f32", keyed=False, changed=True)
    native, ids = _columns(table, 1), np.zeros((100_000, 1), np.int64)
    for bad in (99_999, 60_000, 17_000):
        ids[bad] = -bad
        with pytest.raises(InvalidRequestError, match=f"id -{bad} is outside of table 't', which has rows"):
            native.run(_features(ids), len(ids))


def test_programs_of_two_epochs_run_side_by_side() -> None:
    table, _ = _table("f32", keyed=False, changed=False)
    later, _ = _table("f32", keyed=False, changed=True)
    old = _columns(table, 1)
    new = old.with_tables({"t": later, "another": table})
    ids = np.arange(_ROWS)[:, None]
    for native, state in ((old, table), (new, later), (old, table)):
        rows = np.empty((_ROWS, _DIM), np.float32)
        state.lookup(ids[:, 0], rows)
        np.testing.assert_array_equal(native.run(_features(ids), _ROWS)[1][:, 1:-2], rows)
