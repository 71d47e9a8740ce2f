"""Shape plumbing and casts against TensorFlow."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.host.comparison import NUMBERS, Case, Cases, run_cases, values

_ALL = (*NUMBERS, "bool", "string")
_INDEX = ("int32", "int64")


def _one(*shapes: tuple[int, ...], dtypes: tuple[str, ...] = _ALL, **attrs: object) -> Callable:
    def cases(rng: np.random.Generator) -> Cases:
        for dtype in dtypes:
            for shape in shapes or [(), (3,), (2, 0), (2, 3, 4)]:
                yield Case((values(rng, shape, dtype),), attrs)

    return cases


def _shape(rng: np.random.Generator) -> Cases:
    for out in _INDEX:
        yield from (Case(c.inputs, {"out_type": out}) for c in _one()(rng))


def _shape_n(rng: np.random.Generator) -> Cases:
    for out in _INDEX:
        yield Case(([values(rng, s, "float32") for s in [(), (2, 3), (0,)]],), {"out_type": out})


def _identity_n(rng: np.random.Generator) -> Cases:
    yield Case(([values(rng, (2,), "float32"), values(rng, (1, 2), "string")],))


def _ensure_shape(rng: np.random.Generator) -> Cases:
    for shape in [None, [2, 3], [-1, 3], [-1, -1], [2, 2], [-1], []]:
        yield Case((values(rng, (2, 3), "int64"),), {"shape": shape})


def _reshape(rng: np.random.Generator) -> Cases:
    for index in _INDEX:
        for dtype in _ALL:
            yield Case((values(rng, (2, 6), dtype), np.array([3, -1], index)))
        for target in [[-1], [4, 3], [2, -1, 3], [5, -1], [-1, -1], [13], [12, 0], [-2, 6], [1, 1, 12]]:
            yield Case((values(rng, (2, 6), "float32"), np.array(target, index)))
        yield Case((values(rng, (0, 6), "float32"), np.array([-1, 0], index)))
        yield Case((values(rng, (0, 6), "float32"), np.array([-1, 6], index)))
        yield Case((values(rng, (), "float32"), np.zeros(0, index)))
        yield Case((values(rng, (1,), "float32"), np.array([[1]], index)))


def _expand_dims(rng: np.random.Generator) -> Cases:
    for axis in range(-5, 5):
        yield Case((values(rng, (2, 3, 4), "string"), np.array(axis, np.int32)))
    yield Case((values(rng, (), "int8"), np.array([0], np.int64)))


def _squeeze(rng: np.random.Generator) -> Cases:
    x = values(rng, (1, 3, 1, 2, 1), "int32")
    for dims in [[], [0], [-1, 0], [2], [1], [0, 0], [7], [-6]]:
        yield Case((x,), {"squeeze_dims": dims})
    yield Case((values(rng, (2, 3), "string"),), {"squeeze_dims": []})
    yield Case((values(rng, (1, 1), "string"),), {"squeeze_dims": []})


def _strided_slice(rng: np.random.Generator) -> Cases:
    x = values(rng, (4, 5, 3), "int32")
    for _ in range(150):
        entries = int(rng.integers(1, 5))
        masks = {
            name: int(rng.integers(0, 1 << entries)) if rng.random() < chance else 0
            for name, chance in [("begin_mask", 0.5), ("end_mask", 0.5), ("shrink_axis_mask", 0.4)]
        }
        masks["new_axis_mask"] = int(rng.integers(0, 1 << entries)) if rng.random() < 0.3 else 0
        masks["ellipsis_mask"] = 1 << int(rng.integers(entries)) if rng.random() < 0.3 else 0
        stride = rng.choice([-2, -1, 1, 2], entries)
        args = (rng.integers(-6, 7, entries), rng.integers(-6, 7, entries), stride)
        index = rng.choice(_INDEX)
        yield Case((x, *(a.astype(index) for a in args)), masks)
    for dtype in _ALL:
        yield Case(
            (values(rng, (4, 3), dtype), np.array([1, 0]), np.array([3, 1]), np.array([1, 1])),
            {"shrink_axis_mask": 2, "begin_mask": 0, "end_mask": 0, "ellipsis_mask": 0, "new_axis_mask": 0},
        )
    yield Case((x, np.array([0]), np.array([1]), np.array([0])), dict.fromkeys(masks, 0))
    yield Case(
        (values(rng, (0, 2), "string"), np.array([-1]), np.array([9]), np.array([1])), dict.fromkeys(masks, 0)
    )


def _slice(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        yield Case((values(rng, (4, 5), dtype), np.array([1, 2]), np.array([2, -1])))
    for begin, size in [
        ([0, 0], [4, 5]),
        ([4, 5], [0, 0]),
        ([4, 0], [1, 1]),
        ([-1, 0], [1, 1]),
        ([0, 0], [-2, 1]),
    ]:
        yield Case((values(rng, (4, 5), "float32"), np.array(begin), np.array(size)))
    yield Case((values(rng, (4, 5), "float32"), np.array([0]), np.array([1])))


def _pack(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for axis in range(-4, 4):
            yield Case(([values(rng, (2, 3), dtype) for _ in range(3)],), {"axis": axis})
    yield Case(([values(rng, (2,), "int32"), values(rng, (3,), "int32")],), {"axis": 0})
    yield Case(([values(rng, (), "string")],), {"axis": 0})


def _unpack(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for axis in (-1, 0, 1):
            x = values(rng, (2, 3), dtype)
            yield Case((x,), {"axis": axis, "num": x.shape[axis]})
    yield Case((values(rng, (3,), "string"),), {"axis": 0, "num": 3})
    yield Case((values(rng, (3,), "string"),), {"axis": 0, "num": 2})


def _concat_v2(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for axis in (-3, -1, 0, 1, 2):
            parts = [values(rng, (2, 3), dtype), values(rng, (2, 3), dtype)]
            yield Case((parts, np.array(axis, np.int32)))
    parts = [values(rng, (2, n), "string") for n in (0, 2, 3)]
    yield Case((parts, np.array(1, np.int64)))
    yield Case((parts, np.array(0, np.int64)))


def _concat(rng: np.random.Generator) -> Cases:
    for case in _concat_v2(rng):
        yield Case((np.asarray(case.inputs[1], np.int32), case.inputs[0]))


def _split(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for axis in (-2, -1, 0, 1, 3):
            yield Case((np.array(axis, np.int32), values(rng, (4, 6), dtype)), {"num_split": 2})
    yield Case((np.array(0, np.int32), values(rng, (4, 6), "int32")), {"num_split": 3})


def _split_v(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for sizes in ([1, 2, 3], [6, 0, 0], [-1, 2, 2], [1, -1, -1], [1, 1, 1], [7, -1, 0]):
            inputs = (values(rng, (2, 6), dtype), np.array(sizes), np.array(1, np.int32))
            yield Case(inputs, {"num_split": 3})


def _transpose(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for perm in ([2, 0, 1], [0, 1, 2], [-1, 0, 1], [0, 0, 1], [0, 1]):
            yield Case((values(rng, (2, 3, 4), dtype), np.array(perm, np.int32)))


def _tile(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for multiples in ([2, 3], [0, 1], [1, 1], [-1, 1], [2]):
            yield Case((values(rng, (2, 3), dtype), np.array(multiples, np.int32)))


def _fill(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for dims in ([2, 3], [], [0, 4], [-1]):
            yield Case((np.array(dims, np.int64), values(rng, (), dtype)))


def _range(rng: np.random.Generator) -> Cases:
    for dtype in ("int32", "int64", "float32", "float64"):
        for a, b, d in [(0, 7, 2), (0, 8, 2), (5, -3, -1), (3, 3, 1), (3, 1, 1), (1, 3, 0), (-4, 9, 3)]:
            yield Case(tuple(np.array(v, dtype) for v in (a, b, d)))
        if dtype.startswith("float"):
            for _ in range(20):
                a, d = rng.normal(size=2)
                yield Case(tuple(np.array(v, dtype) for v in (a, a + d * 7.3, d)), rtol=1e-6)


def _lin_space(rng: np.random.Generator) -> Cases:
    for dtype in ("float32", "float64"):
        for num in (1, 2, 7, 0):
            a, b = rng.normal(size=2)
            yield Case((np.array(a, dtype), np.array(b, dtype), np.array(num, np.int32)), rtol=1e-6)


def _broadcast_to(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for shape, target in [((3, 1), [3, 4]), ((), [2, 0]), ((2,), [5, 2]), ((2,), [3]), ((2, 2), [2])]:
            yield Case((values(rng, shape, dtype), np.array(target, np.int64)))


def _broadcast_args(rng: np.random.Generator) -> Cases:
    for index in _INDEX:
        for a, b in [([3, 1], [4]), ([], [2, 3]), ([0], [1]), ([2], [3]), ([5, 1, 3], [2, 1])]:
            yield Case((np.array(a, index), np.array(b, index)))


def _pad(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for paddings in ([[1, 2], [0, 3]], [[0, 0], [0, 0]], [[-1, 0], [0, 0]]):
            yield Case((values(rng, (2, 3), dtype), np.array(paddings, np.int32)))
    yield Case((values(rng, (2, 3), "int32"), np.array([[1, 1]], np.int64)))


def _pad_v2(rng: np.random.Generator) -> Cases:
    for case in _pad(rng):
        dtype = "string" if case.inputs[0].dtype == object else case.inputs[0].dtype.name
        yield Case((*case.inputs, values(rng, (), dtype)))


def _mirror_pad(rng: np.random.Generator) -> Cases:
    for mode in ("REFLECT", "SYMMETRIC"):
        for dtype in _ALL:
            for paddings in ([[1, 2], [0, 3]], [[2, 0], [2, 2]], [[1, 1], [1, 1]], [[3, 4], [0, 0]]):
                yield Case((values(rng, (3, 4), dtype), np.array(paddings, np.int32)), {"mode": mode})


def _reverse_v2(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for axes in ([0], [-1, 0], [], [1, -1], [2]):
            yield Case((values(rng, (2, 3), dtype), np.array(axes, np.int32)))


def _reverse_sequence(rng: np.random.Generator) -> Cases:
    for dtype in _ALL:
        for seq, batch in [(1, 0), (0, 1), (2, 0), (0, 2), (1, 1)]:
            x = values(rng, (3, 4, 2), dtype)
            lengths = rng.integers(0, x.shape[seq] + 1, x.shape[batch])
            yield Case((x, lengths), {"seq_dim": seq, "batch_dim": batch})
    yield Case((values(rng, (2, 3), "int32"), np.array([4, 1])), {"seq_dim": 1, "batch_dim": 0})


def _band(rng: np.random.Generator) -> Cases:
    for dtype in (*NUMBERS, "bool"):
        for lower, upper in [(0, 0), (1, -1), (-1, 1), (2, 0), (9, 0)]:
            yield Case((values(rng, (2, 4, 3), dtype), np.array(lower), np.array(upper)))


def _cast(rng: np.random.Generator) -> Cases:
    odd = [np.nan, 1e20, -1e20, -1.5, 300.7, np.inf, -np.inf, 5e9, -0.5, 3e9, 0.0, 65000.0]
    for source in (*NUMBERS, "bool"):
        for target in (*NUMBERS, "bool"):
            yield Case((values(rng, (3, 4), source),), {"DstT": target, "Truncate": False})
            if source.startswith("float"):
                yield Case((np.array(odd, source),), {"DstT": target, "Truncate": False})
            elif source != "bool":
                info = np.iinfo(source)
                yield Case((np.array([info.min, info.max], source),), {"DstT": target, "Truncate": False})


CASES: dict[str, Callable[[np.random.Generator], Cases]] = {
    "Identity": _one(),
    "StopGradient": _one(),
    "Snapshot": _one(),
    "PreventGradient": _one(message="no"),
    "IdentityN": _identity_n,
    "EnsureShape": _ensure_shape,
    "Shape": _shape,
    "ShapeN": _shape_n,
    "Size": _shape,
    "Rank": _one(),
    "Reshape": _reshape,
    "ExpandDims": _expand_dims,
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "Slice": _slice,
    "Pack": _pack,
    "Unpack": _unpack,
    "ConcatV2": _concat_v2,
    "Concat": _concat,
    "Split": _split,
    "SplitV": _split_v,
    "Transpose": _transpose,
    "Tile": _tile,
    "Fill": _fill,
    "Range": _range,
    "LinSpace": _lin_space,
    "BroadcastTo": _broadcast_to,
    "BroadcastArgs": _broadcast_args,
    "Pad": _pad,
    "PadV2": _pad_v2,
    "MirrorPad": _mirror_pad,
    "ReverseV2": _reverse_v2,
    "ReverseSequence": _reverse_sequence,
    "MatrixBandPart": _band,
    "Cast": _cast,
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("op_type", CASES)
def test_as_tensorflow(op_type: str, seed: int) -> None:
    run_cases(op_type, CASES[op_type](np.random.default_rng(seed)))
