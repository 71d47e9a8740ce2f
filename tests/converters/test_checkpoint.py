"""Checkpoints read without TensorFlow's runtime hold the values that TensorFlow reads from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from converters.checkpoint import Checkpoint
from converters.errors import ConversionError

v1 = tf.compat.v1
RNG = np.random.default_rng(11)


def save(prefix: Path, values: Mapping[str, np.ndarray], slices: Sequence[str] = ()) -> Path:
    """One SaveV2, as a Saver runs it; `slices` are in the order of `values`."""
    names = list(values)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=list(slices) or [""] * len(names),
        tensors=[tf.constant(v) for v in values.values()],
    )
    return prefix


def restored(prefix: Path, name: str, dtype: tf.DType, spec: str = "") -> np.ndarray:
    """TensorFlow's own value of a variable or slice."""
    return tf.raw_ops.RestoreV2(
        prefix=str(prefix), tensor_names=[name], shape_and_slices=[spec], dtypes=[dtype]
    )[0].numpy()


DTYPES = [
    tf.float32,
    tf.float64,
    tf.float16,
    tf.bfloat16,
    tf.int8,
    tf.int16,
    tf.int32,
    tf.int64,
    tf.uint8,
    tf.uint16,
    tf.bool,
    tf.complex64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7, 3), (2, 3, 4, 5)], ids=str)
def test_a_variable_of_every_dtype(dtype: tf.DType, shape: tuple[int, ...], tmp_path: Path) -> None:
    value = tf.cast(RNG.normal(0.0, 20.0, shape), dtype).numpy()
    save(tmp_path / "c", {"before": np.ones(3, np.int8), "v": value, "w": value})
    found = Checkpoint(tmp_path / "c").read("v")
    assert found.dtype == (ml_dtypes.bfloat16 if dtype == tf.bfloat16 else value.dtype)
    assert found.shape == shape
    np.testing.assert_array_equal(found, restored(tmp_path / "c", "v", dtype))


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    value = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    found = Checkpoint(save(tmp_path / "c", {"v": value})).read("v")
    assert found.tobytes() == value.tobytes()


ODD_NAMES = [
    "a/b/c/.ATTRIBUTES/VARIABLE_VALUE",
    "with space",
    "ключ/☃/東京",
    "nul\0inside",
    "a",
    "a/",
    "a/b" * 80,
    "_CHECKPOINTABLE",
    "part_0:0",
]


def test_names_with_odd_characters(tmp_path: Path) -> None:
    """And hundreds of names that share their starts, over several blocks of the index."""
    names = sorted({*ODD_NAMES, *(f"model/layer_{i // 7}/kernel_{i}" for i in range(900))})
    values = {name: np.full([2], i, np.float32) for i, name in enumerate(names)}
    checkpoint = Checkpoint(save(tmp_path / "c", values))
    assert checkpoint.names() == names
    for name, value in values.items():
        np.testing.assert_array_equal(checkpoint.read(name), value)


def _cut(shape: tuple[int, ...], axis: int, lengths: Sequence[int]) -> list[tuple[str, tuple[slice, ...]]]:
    """The slices of a variable cut along an axis, each with its place."""
    found, start = [], 0
    for length in lengths:
        at = [(0, n) for n in shape]
        at[axis] = (start, length)
        spec = " ".join(map(str, shape)) + " " + ":".join(f"{a},{n}" for a, n in at)
        found.append((spec, tuple(slice(a, a + n) for a, n in at)))
        start += length
    return found


CUTS = [
    pytest.param((20, 4), 0, (10, 10), id="even rows"),
    pytest.param((20, 4), 0, (7, 7, 6), id="uneven rows"),
    pytest.param((5,), 0, (1, 4), id="a vector"),
    pytest.param((6, 10), 1, (3, 7), id="columns"),
    pytest.param((200, 2), 0, (63, 1, 64, 72), id="offsets around the first two-byte number"),
    pytest.param((9000, 1), 0, (8191, 1, 808), id="offsets around the first three-byte number"),
    pytest.param((1 << 20, 1), 0, ((1 << 20) - 3, 3), id="offsets of a million"),
]


@pytest.mark.parametrize(("shape", "axis", "lengths"), CUTS)
def test_slices(shape: tuple[int, ...], axis: int, lengths: Sequence[int], tmp_path: Path) -> None:
    """Each slice as it is stored, and the whole that they make together."""
    whole = RNG.standard_normal(shape).astype(np.float32)
    slices = _cut(shape, axis, lengths)
    # One SaveV2 stores each name once; TensorFlow merges them as it does the shards of parameter servers.
    parts = [
        str(save(tmp_path / f"part{i}", {"m/ta\0ble": whole[at]}, [spec]))
        for i, (spec, at) in enumerate(slices)
    ]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(tmp_path / "c"))
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint.names() == ["m/ta\0ble"]
    for spec, at in slices:
        found = checkpoint.read("m/ta\0ble", spec)
        np.testing.assert_array_equal(found, whole[at])
        np.testing.assert_array_equal(found, restored(tmp_path / "c", "m/ta\0ble", tf.float32, spec))
    np.testing.assert_array_equal(checkpoint.read("m/ta\0ble"), whole)


def test_slices_of_a_variable_that_is_stored_whole(tmp_path: Path) -> None:
    value = RNG.standard_normal((20, 4)).astype(np.float32)
    checkpoint = Checkpoint(save(tmp_path / "c", {"v": value}))
    for spec in ("20 4 3,9:0,4", "20 4 -:1,2", "20 4 0,20:-"):
        expected = restored(tmp_path / "c", "v", tf.float32, spec)
        np.testing.assert_array_equal(checkpoint.read("v", spec), expected)


def test_slices_that_were_stored_otherwise(tmp_path: Path) -> None:
    """A graph of two partitions reads a checkpoint of three, as TensorFlow allows."""
    whole = RNG.standard_normal((20, 4)).astype(np.float32)
    parts = [
        str(save(tmp_path / f"p{i}", {"v": whole[at]}, [spec]))
        for i, (spec, at) in enumerate(_cut((20, 4), 0, (7, 7, 6)))
    ]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(tmp_path / "c"))
    checkpoint = Checkpoint(tmp_path / "c")
    for spec, at in (*_cut((20, 4), 0, (10, 10)), *_cut((20, 4), 1, (1, 3))):
        np.testing.assert_array_equal(checkpoint.read("v", spec), whole[at])
        np.testing.assert_array_equal(
            checkpoint.read("v", spec), restored(tmp_path / "c", "v", tf.float32, spec)
        )


def test_slices_whose_dimensions_are_whole(tmp_path: Path) -> None:
    whole = RNG.standard_normal((20, 4)).astype(np.float32)
    for i in range(2):
        save(tmp_path / f"p{i}", {"v": whole[10 * i : 10 * i + 10]}, [f"20 4 {10 * i},10:-"])
    parts = [str(tmp_path / "p0"), str(tmp_path / "p1")]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(tmp_path / "c"))
    checkpoint = Checkpoint(tmp_path / "c")
    np.testing.assert_array_equal(checkpoint.read("v"), whole)
    np.testing.assert_array_equal(checkpoint.read("v", "20 4 10,10:0,4"), whole[10:])


def test_a_variable_of_which_a_slice_is_missing(tmp_path: Path) -> None:
    save(tmp_path / "c", {"v": np.ones((10, 4), np.float32)}, ["20 4 0,10:0,4"])
    with pytest.raises(ConversionError, match=r"c\.index.*'v'.*Export the model again"):
        Checkpoint(tmp_path / "c").read("v")


@pytest.mark.parametrize(
    "partitioner",
    [
        v1.fixed_size_partitioner(3),
        v1.fixed_size_partitioner(2, axis=1),
        v1.min_max_variable_partitioner(max_partitions=4, min_slice_size=64),
    ],
    ids=["fixed size", "fixed size on columns", "min max"],
)
def test_partitioned_variables_of_a_sharded_saver(partitioner: object, tmp_path: Path) -> None:
    """Partitions on two devices, a data file for each."""
    with tf.Graph().as_default():
        with v1.variable_scope("tower", partitioner=partitioner):
            table = v1.get_variable("table", [37, 6], initializer=v1.random_normal_initializer(seed=1))
        for i, part in enumerate(list(table)):
            part.op._set_device(f"/cpu:{i % 2}")
        with tf.device("/cpu:1"):
            v1.get_variable("bias", [5], tf.float64, initializer=v1.random_normal_initializer(seed=2))
        with tf.device("/cpu:0"):
            v1.get_variable("step", [], tf.int64, initializer=v1.constant_initializer(12345))
        config = v1.ConfigProto(device_count={"CPU": 2})
        with v1.Session(config=config) as session:
            session.run(v1.global_variables_initializer())
            prefix = v1.train.Saver(sharded=True).save(session, str(tmp_path / "model.ckpt"), 7)
            whole, parts = session.run([tf.convert_to_tensor(table), list(table)])
            specs = [p._save_slice_info.spec for p in table]
    assert len(list(tmp_path.glob("model.ckpt-7.data-*-of-00002"))) == 2
    checkpoint, reader = Checkpoint(Path(prefix)), tf.train.load_checkpoint(prefix)
    assert checkpoint.names() == sorted(reader.get_variable_to_shape_map())
    assert len(parts) > 1
    for spec, part in zip(specs, parts, strict=True):
        np.testing.assert_array_equal(checkpoint.read("tower/table", spec), part)
    np.testing.assert_array_equal(checkpoint.read("tower/table"), whole)
    for name in ("tower/table", "bias", "step"):
        np.testing.assert_array_equal(checkpoint.read(name), reader.get_tensor(name))


def test_the_object_graph_of_tensorflow_2(tmp_path: Path) -> None:
    module = tf.Module()
    module.first = tf.Variable(RNG.standard_normal((3, 2)), name="kernel")
    module.inner = tf.Module()
    module.inner.second = tf.Variable([1, 2], name="bias")
    module.twice = [tf.Variable(0.0, name="same"), tf.Variable(1.0, name="same")]
    prefix = tf.train.Checkpoint(root=module).write(str(tmp_path / "c"))
    checkpoint, reader = Checkpoint(Path(prefix)), tf.train.load_checkpoint(prefix)
    keys = checkpoint.object_keys().values()
    assert set(keys) == set(checkpoint.names()) and len(keys) == 4
    values = {
        "first": module.first, "inner/second": module.inner.second, "twice/0": module.twice[0],
        "twice/1": module.twice[1],
    }  # fmt: skip
    for path, variable in values.items():
        (key,) = [k for k in keys if k.startswith(path + "/.ATTRIBUTES")]
        np.testing.assert_array_equal(checkpoint.read(key), variable.numpy())
    strings = {name for name in reader.get_variable_to_shape_map() if name.startswith("_CHECKPOINTABLE")}
    assert set(checkpoint.names()) == set(reader.get_variable_to_shape_map()) - strings


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(save(tmp_path / "c", {"v": np.zeros((1000, 100), np.float32)}))
    found = checkpoint.read("v")
    base = found
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not found.flags.writeable


# --- what is damaged ---


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    values = {f"layer_{i}/kernel": np.full((40, 10), i, np.float32) for i in range(60)}
    return save(tmp_path / "c", values)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"nothing\.index cannot be read: No such file"):
        Checkpoint(tmp_path / "nothing")


def test_a_missing_variable(prefix: Path) -> None:
    with pytest.raises(ConversionError, match=r"c\.index has no variable 'other'.*it has: layer_0/kernel"):
        Checkpoint(prefix).read("other")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_index(prefix: Path, kept: float) -> None:
    index = Path(f"{prefix}.index")
    data = index.read_bytes()
    index.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ConversionError, match=r"c\.index is damaged"):
        Checkpoint(prefix)


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_index(prefix: Path, seed: int) -> None:
    """A flipped bit anywhere is refused; none gives another value or an error of Python's."""
    index = Path(f"{prefix}.index")
    data = index.read_bytes()
    rng = np.random.default_rng(seed)
    for _ in range(40):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        index.write_bytes(damaged)
        try:
            checkpoint = Checkpoint(prefix)
            for i in range(60):
                np.testing.assert_array_equal(checkpoint.read(f"layer_{i}/kernel")[0], [i] * 10)
        except ConversionError as error:
            assert str(prefix) in str(error)


def test_an_index_of_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    for size in (48, 100, 1000):
        for ending in (b"", magic):
            (tmp_path / "c.index").write_bytes(rng.bytes(size) + ending)
            with pytest.raises(ConversionError, match="is damaged"):
                Checkpoint(tmp_path / "c")


def test_a_truncated_data_file(prefix: Path) -> None:
    data = Path(f"{prefix}.data-00000-of-00001")
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    checkpoint, refused = Checkpoint(prefix), []
    for name in checkpoint.names():
        try:
            checkpoint.read(name)
        except ConversionError as error:
            refused.append(str(error))
    assert len(refused) == 1
    assert "data-00000-of-00001 is missing or shorter" in refused[0] and "copy" in refused[0]


def test_a_missing_data_file(prefix: Path) -> None:
    Path(f"{prefix}.data-00000-of-00001").unlink()
    with pytest.raises(ConversionError, match="is missing or shorter"):
        Checkpoint(prefix).read("layer_0/kernel")


def test_a_data_file_without_the_object_graph(tmp_path: Path) -> None:
    module = tf.Module()
    module.first = tf.Variable([1.0], name="kernel")
    prefix = tf.train.Checkpoint(root=module).write(str(tmp_path / "c"))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(ConversionError, match="is missing or shorter|is damaged"):
        Checkpoint(Path(prefix)).object_keys()
