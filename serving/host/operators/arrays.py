"""Shape plumbing: operators that move, repeat, cut or describe values without looking at them, and dtype
casts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.host.operators.registry import (
    Lookups,
    Operator,
    array,
    axis_of,
    check,
    filled,
    refuse,
    scalar,
    zero_of,
)


def identity(lookups: Lookups, value: np.ndarray) -> np.ndarray:
    """The value itself."""
    return value


def prevent_gradient(lookups: Lookups, value: np.ndarray, *, message: str = "") -> np.ndarray:
    """The value itself; the message is for training."""
    return value


def identity_n(lookups: Lookups, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The values themselves."""
    return values


def ensure_shape(lookups: Lookups, value: np.ndarray, *, shape: Sequence[int] | None) -> np.ndarray:
    """The value, if it has the shape; -1 is any size and None any shape."""
    if shape is not None:
        fits = len(shape) == value.ndim and all(
            want in (-1, have) for want, have in zip(shape, value.shape, strict=True)
        )
        check(fits, f"a tensor of shape {list(value.shape)} where {list(shape)} is expected")
    return value


def shape(lookups: Lookups, value: np.ndarray, *, out_type: str = "int32") -> np.ndarray:
    """Sizes of the dimensions, `[rank]`."""
    return np.array(value.shape, out_type)


def shape_n(lookups: Lookups, *values: np.ndarray, out_type: str = "int32") -> tuple[np.ndarray, ...]:
    """The shape of each value."""
    return tuple(np.array(v.shape, out_type) for v in values)


def size(lookups: Lookups, value: np.ndarray, *, out_type: str = "int32") -> np.ndarray:
    """Number of elements."""
    return np.array(value.size, out_type)


def rank(lookups: Lookups, value: np.ndarray) -> np.ndarray:
    """Number of dimensions, int32."""
    return np.array(value.ndim, np.int32)


def reshape(lookups: Lookups, tensor: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Row-major reshape; one size may be -1."""
    check(shape.ndim == 1, f"a shape must be a vector, found shape {list(shape.shape)}")
    sizes = [int(s) for s in shape]
    check(min(sizes, default=0) >= -1 and sizes.count(-1) <= 1, f"{sizes} is not a shape")
    if -1 in sizes:
        # Beside a size of 0, TensorFlow finds the missing size among the dimensions that are not 0.
        has_zero = 0 in sizes
        known = int(np.prod([s for s in sizes if s not in (-1, 0)], dtype=np.int64))
        whole = int(np.prod([n for n in tensor.shape if n or not has_zero], dtype=np.int64))
        check(whole % known == 0, f"reshape of {list(tensor.shape)} to {sizes}")
        sizes[sizes.index(-1)] = whole // known
    fits = int(np.prod(sizes, dtype=np.int64)) == tensor.size
    check(fits, f"reshape of a tensor of shape {list(tensor.shape)} to {sizes}")
    return tensor.reshape(sizes)


def expand_dims(lookups: Lookups, value: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """One more dimension of size 1."""
    return np.expand_dims(value, axis_of(scalar(axis, "axis"), value.ndim + 1))


def squeeze(lookups: Lookups, value: np.ndarray, *, squeeze_dims: Sequence[int] = ()) -> np.ndarray:
    """Without the given dimensions, which must be of size 1; without all such dimensions if none is given."""
    axes = tuple({axis_of(a, value.ndim) for a in squeeze_dims})
    for axis in axes:
        check(value.shape[axis] == 1, f"cannot squeeze dimension {axis} of shape {list(value.shape)}")
    return np.squeeze(value, axes or None)


def strided_slice(
    lookups: Lookups,
    value: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    strides: np.ndarray,
    *,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> np.ndarray:
    """Python's indexing `value[begin:end:stride, ...]`: bit i of a mask is about entry i of the index."""
    index: list[Any] = []
    dimension, entries = 0, len(begin)
    for i in range(entries):
        bit = 1 << i
        if ellipsis_mask & bit:
            check(... not in index, "a strided slice with two ellipses")
            later = sum(not new_axis_mask & (1 << j) for j in range(i + 1, entries))
            dimension = value.ndim - later
            index.append(...)
            continue
        if new_axis_mask & bit:
            index.append(None)
            continue
        check(dimension < value.ndim, f"a strided slice of more than the {value.ndim} dimensions it has")
        first, stop, stride = int(begin[i]), int(end[i]), int(strides[i])
        check(stride != 0, "a strided slice with stride 0")
        if shrink_axis_mask & bit:
            size = value.shape[dimension]
            check(stride > 0, "a strided slice takes one element with a negative stride")
            check(-size <= first < size, f"slice index {first} of dimension {dimension} of size {size}")
            index.append(first)
        else:
            index.append(slice(None if begin_mask & bit else first, None if end_mask & bit else stop, stride))
        dimension += 1
    return array(value[tuple(index)])


def slice_(lookups: Lookups, value: np.ndarray, begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """`size` elements from `begin` on in every dimension; a size of -1 means all that are left."""
    check(begin.shape == size.shape == (value.ndim,), f"a slice of a tensor of rank {value.ndim}")
    cuts = []
    for first, count, whole in zip(begin.tolist(), size.tolist(), value.shape, strict=True):
        stop = whole if count == -1 else first + count
        check(0 <= first <= stop <= whole, f"slice [{first}, {stop}) of a dimension of size {whole}")
        cuts.append(slice(first, stop))
    return value[tuple(cuts)]


def _same_shape(values: Sequence[np.ndarray], without: int | None = None) -> None:
    def rest(value: np.ndarray) -> tuple[int, ...]:
        return value.shape if without is None else value.shape[:without] + value.shape[without + 1 :]

    for value in values:
        if value.ndim != values[0].ndim or rest(value) != rest(values[0]):
            refuse(f"tensors of shapes {list(values[0].shape)} and {list(value.shape)} do not join")


def pack(lookups: Lookups, *values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Values of one shape along a new axis."""
    _same_shape(values)
    return np.stack(values, axis_of(axis, values[0].ndim + 1))


def unpack(lookups: Lookups, value: np.ndarray, *, num: int, axis: int = 0) -> tuple[np.ndarray, ...]:
    """The `num` sub-tensors along an axis."""
    axis = axis_of(axis, value.ndim)
    check(value.shape[axis] == num, f"{value.shape[axis]} values to unpack, {num} expected")
    return tuple(array(v) for v in np.moveaxis(value, axis, 0))


def concat_v2(lookups: Lookups, *values_and_axis: np.ndarray) -> np.ndarray:
    """Values joined along the axis that is the last input."""
    *values, axis = values_and_axis
    return _concat(values, scalar(axis, "axis"))


def concat(lookups: Lookups, concat_dim: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Values joined along the axis that is the first input."""
    return _concat(values, scalar(concat_dim, "concat_dim"))


def _concat(values: Sequence[np.ndarray], axis: int) -> np.ndarray:
    axis = axis_of(axis, values[0].ndim)
    _same_shape(values, axis)
    return np.concatenate(values, axis)


def split(
    lookups: Lookups, split_dim: np.ndarray, value: np.ndarray, *, num_split: int
) -> tuple[np.ndarray, ...]:
    """`num_split` equal parts."""
    axis = axis_of(scalar(split_dim, "split_dim"), value.ndim)
    check(value.shape[axis] % num_split == 0, f"{value.shape[axis]} is not a multiple of {num_split}")
    return tuple(np.split(value, num_split, axis))


def split_v(
    lookups: Lookups, value: np.ndarray, size_splits: np.ndarray, split_dim: np.ndarray, *, num_split: int
) -> tuple[np.ndarray, ...]:
    """Parts of the given sizes; one size may be -1."""
    axis = axis_of(scalar(split_dim, "split_dim"), value.ndim)
    sizes = [int(s) for s in size_splits]
    check(len(sizes) == num_split and sizes.count(-1) <= 1, f"{sizes} for {num_split} parts")
    if -1 in sizes:
        sizes[sizes.index(-1)] = value.shape[axis] - sum(s for s in sizes if s != -1)
    check(min(sizes) >= 0 and sum(sizes) == value.shape[axis], f"{sizes} do not add to {value.shape[axis]}")
    return tuple(np.split(value, np.cumsum(sizes)[:-1], axis))


def transpose(lookups: Lookups, x: np.ndarray, perm: np.ndarray) -> np.ndarray:
    """Dimension i of the result is dimension perm[i] of x."""
    axes = [axis_of(int(p), x.ndim) for p in perm]
    check(sorted(axes) == list(range(x.ndim)), f"{perm.tolist()} does not permute {x.ndim} dimensions")
    return np.ascontiguousarray(x.transpose(axes)).reshape([x.shape[a] for a in axes])


def tile(lookups: Lookups, value: np.ndarray, multiples: np.ndarray) -> np.ndarray:
    """The value repeated `multiples[i]` times along dimension i."""
    check(multiples.shape == (value.ndim,), f"{multiples.tolist()} for a tensor of rank {value.ndim}")
    check((multiples >= 0).all(), f"negative multiples {multiples.tolist()}")
    return np.tile(value, multiples.tolist())


def fill(lookups: Lookups, dims: np.ndarray, value: np.ndarray) -> np.ndarray:
    """A tensor of shape `dims` of one value."""
    check((dims >= 0).all(), f"{dims.tolist()} is not a shape")
    return filled(dims.tolist(), scalar(value, "value"), value.dtype)


def range_(lookups: Lookups, start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """start, start + delta, ... before limit."""
    first, last, step = (scalar(v, "a range's limit") for v in (start, limit, delta))
    check(step != 0, "a range with delta 0")
    check(first <= last if step > 0 else first >= last, f"a range from {first} to {last} by {step}")
    if start.dtype.kind == "f":
        count = int(np.ceil(np.abs((np.float64(last) - first) / step)))
        return start.reshape(()) + np.arange(count, dtype=start.dtype) * delta.reshape(())
    count = -((first - last) // step)
    return (first + np.arange(count, dtype=np.int64) * step).astype(start.dtype)


def lin_space(lookups: Lookups, start: np.ndarray, stop: np.ndarray, num: np.ndarray) -> np.ndarray:
    """`num` evenly spaced values from start to stop."""
    count = scalar(num, "num")
    check(count > 0, f"a linear space of {count} values")
    first, last = start.reshape(()), stop.reshape(())
    if count == 1:
        return first.reshape(1)
    step = (last - first) / start.dtype.type(count - 1)
    values = (first + step * np.arange(count, dtype=start.dtype)).astype(start.dtype)
    values[-1] = last
    return values


def broadcast_to(lookups: Lookups, value: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The value repeated to a shape."""
    try:
        return np.broadcast_to(value, shape.tolist()).copy()
    except ValueError:
        refuse(f"a tensor of shape {list(value.shape)} does not broadcast to {shape.tolist()}")


def broadcast_args(lookups: Lookups, s0: np.ndarray, s1: np.ndarray) -> np.ndarray:
    """The shape that two shapes broadcast to."""
    try:
        return np.array(np.broadcast_shapes(tuple(s0.tolist()), tuple(s1.tolist())), s0.dtype)
    except ValueError:
        refuse(f"shapes {s0.tolist()} and {s1.tolist()} do not broadcast")


def pad(lookups: Lookups, value: np.ndarray, paddings: np.ndarray) -> np.ndarray:
    """Zeros before and after, `paddings` is `[rank, 2]`."""
    return pad_v2(lookups, value, paddings, filled((), zero_of(value.dtype), value.dtype))


def pad_v2(
    lookups: Lookups, value: np.ndarray, paddings: np.ndarray, constant_values: np.ndarray
) -> np.ndarray:
    """A constant before and after, `paddings` is `[rank, 2]`."""
    check(paddings.shape == (value.ndim, 2), f"paddings {list(paddings.shape)} for rank {value.ndim}")
    check((paddings >= 0).all(), f"negative paddings {paddings.tolist()}")
    before, after = paddings[:, 0].tolist(), paddings[:, 1].tolist()
    sizes = [b + n + a for b, n, a in zip(before, value.shape, after, strict=True)]
    out = filled(sizes, scalar(constant_values, "constant_values"), value.dtype)
    out[tuple(slice(b, b + n) for b, n in zip(before, value.shape, strict=True))] = value
    return out


def mirror_pad(lookups: Lookups, value: np.ndarray, paddings: np.ndarray, *, mode: str) -> np.ndarray:
    """The value's own border mirrored: `SYMMETRIC` repeats the border itself, `REFLECT` does not."""
    check(paddings.shape == (value.ndim, 2), f"paddings {list(paddings.shape)} for rank {value.ndim}")
    limit = np.array(value.shape).reshape(-1, 1) - (mode == "REFLECT")
    fits = ((paddings >= 0) & (paddings <= limit)).all()
    check(fits, f"{mode} paddings {paddings.tolist()} of a tensor of shape {list(value.shape)}")
    return np.pad(value, paddings, mode="reflect" if mode == "REFLECT" else "symmetric")


def reverse_v2(lookups: Lookups, tensor: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Reversed along the given axes."""
    axes = [axis_of(int(a), tensor.ndim) for a in axis]
    check(len(set(axes)) == len(axes), f"axes {axis.tolist()} name one twice")
    return np.flip(tensor, tuple(axes)).copy()


def reverse_sequence(
    lookups: Lookups, value: np.ndarray, seq_lengths: np.ndarray, *, seq_dim: int, batch_dim: int = 0
) -> np.ndarray:
    """The first `seq_lengths[b]` entries along `seq_dim` reversed, for each b along `batch_dim`."""
    seq, batch = axis_of(seq_dim, value.ndim), axis_of(batch_dim, value.ndim)
    check(seq != batch, "seq_dim and batch_dim are the same")
    check(seq_lengths.shape == (value.shape[batch],), f"{len(seq_lengths)} sequence lengths")
    size, lengths = value.shape[seq], seq_lengths.reshape(-1, 1)
    check(((lengths >= 0) & (lengths <= size)).all(), f"a sequence length is outside of [0, {size}]")
    at = np.arange(size)
    source = np.where(at < lengths, lengths - 1 - at, at)
    moved = np.moveaxis(value, (batch, seq), (0, 1))
    picked = moved[np.arange(len(moved))[:, None], source]
    return np.ascontiguousarray(np.moveaxis(picked, (0, 1), (batch, seq)))


def matrix_band_part(
    lookups: Lookups, value: np.ndarray, num_lower: np.ndarray, num_upper: np.ndarray
) -> np.ndarray:
    """The band of `num_lower` and `num_upper` diagonals of each inner matrix; a negative number keeps all."""
    check(value.ndim >= 2, f"a matrix is expected, found shape {list(value.shape)}")
    below, above = scalar(num_lower, "num_lower"), scalar(num_upper, "num_upper")
    rows, columns = value.shape[-2:]
    check(below <= rows and above <= columns, f"a band ({below}, {above}) of a {rows}x{columns} matrix")
    distance = np.arange(rows)[:, None] - np.arange(columns)
    inside = ((distance <= below) | (below < 0)) & ((-distance <= above) | (above < 0))
    return np.where(inside, value, value.dtype.type(0))


def cast(lookups: Lookups, x: np.ndarray, *, DstT: str) -> np.ndarray:  # noqa: N803
    """Values in another dtype. Integers wrap and fractions are cut; what has no value in the dtype becomes
    what TensorFlow's kernel makes of it on x86-64."""
    target = np.dtype(DstT)
    if x.dtype.kind == "f" and target in (np.uint32, np.uint64):
        # C++ leaves these undefined, NumPy and TensorFlow differ: TensorFlow converts with the signed
        # instruction.
        signed, whole = np.dtype(target.name[1:]), 2.0 ** (8 * target.itemsize)
        with np.errstate(invalid="ignore"):
            fits = (x > -whole / 2 - 1) & (x < whole)
            positive, negative = np.where(x >= 0, x, 0), np.where(x < 0, x, 0)
            found = np.where(x >= 0, positive.astype(target), negative.astype(signed).astype(target))
        return array(np.where(fits, found, target.type(2 ** (8 * target.itemsize - 1))), target)
    with np.errstate(invalid="ignore", over="ignore"):
        return x.astype(target)


OPERATORS: dict[str, Operator] = {
    "identity": identity,
    "stop_gradient": identity,
    "snapshot": identity,
    "prevent_gradient": prevent_gradient,
    "identity_n": identity_n,
    "ensure_shape": ensure_shape,
    "shape": shape,
    "shape_n": shape_n,
    "size": size,
    "rank": rank,
    "reshape": reshape,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "strided_slice": strided_slice,
    "slice": slice_,
    "pack": pack,
    "unpack": unpack,
    "concat_v2": concat_v2,
    "concat": concat,
    "split": split,
    "split_v": split_v,
    "transpose": transpose,
    "tile": tile,
    "fill": fill,
    "range": range_,
    "lin_space": lin_space,
    "broadcast_to": broadcast_to,
    "broadcast_args": broadcast_args,
    "pad": pad,
    "pad_v2": pad_v2,
    "mirror_pad": mirror_pad,
    "reverse_v2": reverse_v2,
    "reverse_sequence": reverse_sequence,
    "matrix_band_part": matrix_band_part,
    "cast": cast,
}
