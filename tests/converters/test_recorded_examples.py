"""Recorded requests: files written by TensorFlow and by TensorFlow Serving's own messages, and every way in
which one can be wrong."""

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.errors import ConversionError
from converters.examples import read_examples
from converters.examples.messages_pb2 import DESCRIPTOR
from jaxrank.manifest import Part, Scope, Signature, TensorSpec
from jaxrank.tfrecord import crc32c, masked_crc, read_records
from serving.wire import codec, example_pb2, prediction_log_pb2
from serving.wire.prediction_log_pb2 import PredictionLog


def _spec(
    name: str,
    dtype: str,
    *shape: int | None,
    scope: Scope = "candidate",
    part: Part = "rows",
    feature: str = "",
) -> TensorSpec:
    return TensorSpec(
        name=name, dtype=dtype, shape=shape, scope=scope, tensor_name=f"{name}:0", part=part, feature=feature
    )


def _signature(*inputs: TensorSpec) -> Signature:
    return Signature(name="serving_default", method_name="m", inputs=inputs, outputs=())


RANKER = _signature(
    _spec("user", "string", 1, scope="request"),
    _spec("history", "int64", None, 3, scope="request"),
    _spec("item", "int32", None),
    _spec("tags", "string", None, 2),
    _spec("price", "float32", None),
    _spec("new", "bool", None),
)


def _request(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    words = np.array([b"", "łódź".encode(), b"a\0b", b"\xff"], object)
    return {
        "user": rng.choice(words, 1),
        "history": rng.integers(-5, 1 << 40, (1, 3)),
        "item": rng.integers(-(1 << 31), 1 << 31, rows).astype(np.int32),
        "tags": rng.choice(words, (rows, 2)),
        "price": rng.standard_normal(rows).astype(np.float32),
        "new": rng.random(rows) < 0.5,
    }


def _assert_equal(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        assert f.keys() == e.keys()
        for name, value in e.items():
            assert f[name].dtype == value.dtype, name
            np.testing.assert_array_equal(f[name], value)


def _feature(value: np.ndarray) -> tf.train.Feature:
    flat = value.ravel()
    if value.dtype == object:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=flat.tolist()))
    if value.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=flat.tolist()))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=flat.astype(np.int64).tolist()))


def _example(features: dict[str, np.ndarray]) -> bytes:
    feature = {name: _feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def _write(path: Path, records: list[bytes], compression: str = "") -> Path:
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in records:
            writer.write(record)
    return path


# --- framing ---


def test_crc32c_of_the_rfc() -> None:
    """RFC 3720, appendix B.4."""
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("compression", ["", "GZIP"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_records_are_those_that_tensorflow_wrote(
    tmp_path_factory: pytest.TempPathFactory, compression: str, data: st.DataObject
) -> None:
    """Sizes on both sides of where the checksum is computed in lanes."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    sizes = data.draw(st.lists(st.one_of(st.integers(0, 40), st.integers(8000, 40000)), max_size=4))
    records = [rng.bytes(size) for size in sizes]
    path = _write(tmp_path_factory.mktemp("records") / "f", records, compression)
    assert list(read_records(path)) == records


def test_a_large_record_is_fast(tmp_path: Path) -> None:
    record = np.random.default_rng(0).bytes(20_000_001)
    assert list(read_records(_write(tmp_path / "f", [record]))) == [record]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b[:-1], "record 1 is cut off"),
        (lambda b: b[:-10], "record 1 is cut off"),
        (lambda b: b[: len(b) // 2 + 5], "record 1 is cut off"),
        (lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:], "record 0: the checksum of its .* bytes is wrong"),
        (lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:], "record 1: the checksum of its .* bytes is wrong"),
        (
            lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :],
            "record 1: the checksum of its length is wrong",
        ),
        (lambda b: b"\1" + b[1:], "neither an .npz nor a TFRecord"),
        (lambda b: b"", "is empty"),
        (lambda b: gzip.compress(b)[:-20], "does not decompress|is cut off"),
    ],
)
def test_damaged_files(tmp_path: Path, change, words: str) -> None:
    """Two equal records, so that the second begins in the middle of the file."""
    path = _write(tmp_path / "f", [_example(_request(3, 0))] * 2)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ConversionError, match=words) as caught:
        read_examples(path, RANKER)
    assert str(path) in str(caught.value)


def test_a_length_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    length = struct.pack("<Q", 1 << 60)
    (tmp_path / "f").write_bytes(length + struct.pack("<I", masked_crc(length)) + b"abc")
    with pytest.raises(ConversionError, match="record 0 is cut off"):
        read_examples(tmp_path / "f", RANKER)


def test_files_that_are_not_there_or_no_requests(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="is not a file of example requests"):
        read_examples(tmp_path / "nothing", RANKER)
    (tmp_path / "text").write_text("user,item\n1,2\n")
    with pytest.raises(ConversionError, match="neither an .npz nor a TFRecord file"):
        read_examples(tmp_path / "text", RANKER)
    (tmp_path / "zip").write_bytes(b"PK\3\4 no zip file")
    with pytest.raises(ConversionError, match="is not an .npz of example requests"):
        read_examples(tmp_path / "zip", RANKER)


# --- .npz ---


def test_npz(tmp_path: Path) -> None:
    requests = [_request(rows, rows) for rows in (1, 7, 3, 2, 9, 4, 5, 2, 3, 8, 11)]
    for request in requests:
        for name in ("user", "tags"):
            request[name] = np.where(request[name] == b"a\0b", b"x", request[name])
    arrays = {
        f"{i}/{k}": v.astype("S") if v.dtype == object else v
        for i, r in enumerate(requests)
        for k, v in r.items()
    }
    np.savez(tmp_path / "e.npz", **arrays)  # pyright: ignore[reportArgumentType]
    _assert_equal(read_examples(tmp_path / "e.npz", RANKER), requests)


# --- tf.Example ---


def test_one_example_is_one_request(tmp_path: Path) -> None:
    requests = [_request(rows, rows) for rows in (1, 7, 50)]
    path = _write(tmp_path / "e.tfrecord", [_example(r) for r in requests])
    _assert_equal(read_examples(path, RANKER), requests)


def test_examples_with_the_original_names(tmp_path: Path) -> None:
    request = _request(3, 0)
    path = _write(tmp_path / "f", [_example({f"inputs_{k}": v for k, v in request.items()})])
    with pytest.raises(ConversionError, match="record 0 and the signature disagree on: history, inputs_h"):
        read_examples(path, RANKER)
    _assert_equal(read_examples(path, RANKER, rename={f"inputs_{k}": k for k in request}), [request])


def test_rows_become_requests(tmp_path: Path) -> None:
    """Logged rows, a user beside each: consecutive rows of one user are one request, of at most four here."""
    requests = [_request(3, 1), _request(6, 2)]
    rows = [
        {**r, **{n: r[n][i : i + 1] for n in ("item", "tags", "price", "new")}}
        for r, count in zip(requests, (3, 6), strict=True)
        for i in range(count)
    ]
    path = _write(tmp_path / "f", [_example(r) for r in rows])
    found = read_examples(path, RANKER, rows_per_request=4)
    assert [len(r["item"]) for r in found] == [3, 4, 2]
    _assert_equal(found[:1], requests[:1])
    np.testing.assert_array_equal(np.concatenate([r["tags"] for r in found[1:]]), requests[1]["tags"])
    assert len(read_examples(path, RANKER)) == 9
    with pytest.raises(ConversionError, match="record 1: item has 6 rows, but with rows_per_request"):
        two = _write(tmp_path / "g", [_example(rows[0]), _example(requests[1])])
        read_examples(two, RANKER, rows_per_request=4)


def test_serialized_examples_are_rows(tmp_path: Path) -> None:
    signature = _signature(_spec("examples", "string", None))
    records = [_example({"a": np.arange(i % 3)}) for i in range(107)] + [b""]
    path = _write(tmp_path / "f", records)
    found = read_examples(path, signature)
    assert [len(r["examples"]) for r in found] == [50, 50, 8]
    assert [e for r in found for e in r["examples"]] == records
    assert [len(r["examples"]) for r in read_examples(path, signature, rows_per_request=30)] == [30] * 3 + [
        18
    ]


def test_a_string_input_that_records_name_is_a_feature(tmp_path: Path) -> None:
    signature = _signature(_spec("query", "string", None))
    queries = np.array([b"a", b"b"], object)
    path = _write(tmp_path / "f", [_example({"query": queries})] * 2)
    _assert_equal(read_examples(path, signature), [{"query": queries}] * 2)


def test_an_open_inner_dimension_follows_from_the_rows(tmp_path: Path) -> None:
    signature = _signature(_spec("bag", "int64", None, None), _spec("item", "int64", None))
    request = {"bag": np.arange(12).reshape(3, 4), "item": np.arange(3)}
    path = _write(tmp_path / "f", [_example(request)])
    _assert_equal(read_examples(path, signature), [request])
    path = _write(tmp_path / "g", [_example({**request, "bag": np.arange(11)})])
    with pytest.raises(ConversionError, match=r"bag has 11 values, from which its shape \[None, None\]"):
        read_examples(path, signature)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"item": np.ones(3, np.float32)}, "record 0: item has floats, the signature's int32 needs integers"),
        ({"price": np.ones(3, np.int64)}, "price has integers, the signature's float32 needs floats"),
        ({"tags": np.ones((3, 2))}, "tags has floats, the signature's string needs bytes"),
        ({"item": np.array([1, 2, 1 << 31])}, "item has a value outside of int32"),
        ({"new": np.array([0, 1, 2])}, "new has a value outside of bool"),
        ({"tags": np.array([b"a"] * 5, object)}, r"tags has 5 values, .*no whole rows of shape \[2\]"),
        ({"price": np.ones(2, np.float32)}, "every candidate input needs the same number of rows"),
        ({"user": np.array([b"a", b"a"], object)}, "user has 2 rows, but it is the same for all"),
        ({"history": np.arange(6)}, "history is request-scope, but its 2 rows differ"),
        (
            {"item": np.zeros(0, np.int64)},
            "every candidate input needs the same number of rows, at least one",
        ),
    ],
)
def test_examples_that_do_not_fit(tmp_path: Path, change: dict[str, np.ndarray], words: str) -> None:
    path = _write(tmp_path / "f", [_example({**_request(3, 0), **change})])
    with pytest.raises(ConversionError, match=words):
        read_examples(path, RANKER)


def test_request_features_repeated_on_every_row_become_one(tmp_path: Path) -> None:
    request = _request(5, 0)
    repeated = {**request, "history": np.repeat(request["history"], 5, axis=0)}
    path = _write(tmp_path / "f", [_example(repeated)])
    _assert_equal(read_examples(path, RANKER), [request])


def test_no_protobuf_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="record 1 is neither a tf.Example nor a PredictionLog"):
        read_examples(_write(tmp_path / "f", [_example({}), b"\xff\xff\xff"]), RANKER)


@pytest.mark.parametrize("signature", [RANKER, _signature(_spec("s", "string", None))])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_records_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, signature: Signature, data: st.DataObject
) -> None:
    """Whatever a record with right checksums holds, it is a request that fits, or a message."""
    log = PredictionLog()
    for name, value in _request(2, 0).items():
        log.predict_log.request.inputs[name].CopyFrom(codec.encode(value))
    record = bytearray(data.draw(st.sampled_from([_example(_request(2, 0)), log.SerializeToString()])))
    for _ in range(data.draw(st.integers(0, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    path = _write(tmp_path_factory.mktemp("changed") / "f", [bytes(record)])
    try:
        (request,) = read_examples(path, signature, notice=lambda text: None)
    except ConversionError as error:
        assert str(path) in str(error)
    else:
        assert request.keys() == {t.name for t in signature.inputs}


# --- composite inputs ---

BAGS = _signature(
    _spec("bag/indices", "int64", None, 2, part="sparse_indices", feature="bag"),
    _spec("bag/shape", "int64", 2, part="sparse_shape", feature="bag"),
    _spec("bag/values", "string", None, part="sparse_values", feature="bag"),
    _spec("words/row_splits", "int64", None, part="row_splits", feature="words", scope="request"),
    _spec("words/values", "int64", None, part="flat_values", feature="words", scope="request"),
    _spec("item", "int64", None),
)


def _bags() -> dict[str, np.ndarray]:
    bag = tf.sparse.from_dense([["a", "", "b"], ["", "", ""], ["c", "", ""]])
    words = tf.ragged.constant([[4, 5]], dtype=tf.int64)
    return {
        "bag/indices": bag.indices.numpy(),
        "bag/shape": bag.dense_shape.numpy(),
        "bag/values": bag.values.numpy(),
        "words/row_splits": words.row_splits.numpy(),
        "words/values": words.flat_values.numpy(),
        "item": np.arange(3),
    }


def test_composite_inputs(tmp_path: Path) -> None:
    path = _write(tmp_path / "f", [_example(_bags())])
    _assert_equal(read_examples(path, BAGS), [_bags()])


def test_a_composite_of_the_request_repeated_on_every_row_becomes_one(tmp_path: Path) -> None:
    repeated = {**_bags(), "words/row_splits": np.array([0, 2, 4]), "words/values": np.array([4, 5, 4, 5])}
    _assert_equal(read_examples(_write(tmp_path / "f", [_example(repeated)]), BAGS), [_bags()])
    repeated["words/values"][3] = 6
    with pytest.raises(ConversionError, match="words is request-scope, but its 2 rows differ"):
        read_examples(_write(tmp_path / "g", [_example(repeated)]), BAGS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bag/indices": np.zeros((2, 2), np.int64)}, "the parts of 'bag' do not fit: indices"),
        ({"bag/shape": np.array([2, 3])}, "'bag' has an index outside of its shape"),
        ({"bag/indices": np.array([[0, 0], [0, 2], [2, -1]])}, "'bag' has an index outside of its shape"),
        ({"words/row_splits": np.array([0, 3])}, "the row splits of 'words' must begin with 0"),
        ({"words/row_splits": np.array([1, 2])}, "the row splits of 'words' must begin with 0"),
        ({"words/row_splits": np.array([0, 2, 1, 2])}, "the row splits of 'words' must begin with 0"),
        ({"bag/shape": np.array([4, 3])}, "same number of rows, .*item 3, bag 4"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, change: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        read_examples(_write(tmp_path / "f", [_example({**_bags(), **change})]), BAGS)


# --- PredictionLog ---

_WRITE_LOGS = """
import sys
import numpy as np, tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

given, written = sys.argv[1:]
def predict_log(request, features, signature="serving_default"):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = "ranker"
    log.predict_log.request.model_spec.signature_name = signature
    log.predict_log.response.model_spec.name = "ranker"
    log.log_metadata.sampling_config.sampling_rate = 0.5
    for name, value in features.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log
with np.load(given) as stored, tf.io.TFRecordWriter(written) as writer:
    requests = {}
    for key in stored.files:
        request, _, name = key.partition("/")
        value = stored[key]
        requests.setdefault(request, {})[name] = value.astype(object) if value.dtype.kind == "S" else value
    for request, features in requests.items():
        writer.write(predict_log(request, features).SerializeToString())
    other = prediction_log_pb2.PredictionLog()
    other.classify_log.request.model_spec.name = "ranker"
    writer.write(other.SerializeToString())
    writer.write(other.SerializeToString())
    other.session_run_log.request.feed.add().name = "x"
    writer.write(other.SerializeToString())
    writer.write(predict_log("9", {}, "other").SerializeToString())
"""

_FIELDS = """
import json
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import prediction_log_pb2
messages = [
    example_pb2.Example, feature_pb2.Features, feature_pb2.Feature, feature_pb2.BytesList,
    feature_pb2.FloatList, feature_pb2.Int64List, prediction_log_pb2.PredictLog,
    prediction_log_pb2.PredictionLog, prediction_log_pb2.ClassifyLog, prediction_log_pb2.RegressLog,
]
print(json.dumps({m.DESCRIPTOR.name: {f.name: [f.number, f.is_repeated] for f in m.DESCRIPTOR.fields}
                  for m in messages}))
"""


def _with_serving_api(packages: Path, code: str, *arguments: object) -> str:
    environment = {"PYTHONPATH": str(packages), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, check=True, timeout=120, stdout=subprocess.PIPE, text=True
    ).stdout


def test_field_numbers_are_the_official_ones(client_packages: Path) -> None:
    official = json.loads(_with_serving_api(client_packages, _FIELDS))
    shared = ("Feature", "BytesList", "FloatList", "Int64List")
    messages = {**DESCRIPTOR.message_types_by_name, **prediction_log_pb2.DESCRIPTOR.message_types_by_name}
    messages |= {name: example_pb2.DESCRIPTOR.message_types_by_name[name] for name in shared}
    ours = {
        name: {f.name: [f.number, f.is_repeated] for f in message.fields}
        for name, message in messages.items()
    }
    assert ours == official


@pytest.fixture(scope="module")
def warmup_file(client_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warm-up file as TensorFlow Serving reads it: two Predict calls, and calls that are not ours."""
    directory = tmp_path_factory.mktemp("warmup")
    arrays = {
        f"{i}/{k}": v.astype("S") if v.dtype == object else v
        for i, r in enumerate([_request(7, 4), _request(2, 5)])
        for k, v in r.items()
    }
    np.savez(directory / "in.npz", **arrays)  # pyright: ignore[reportArgumentType]
    path = directory / "tf_serving_warmup_requests"
    _with_serving_api(client_packages, _WRITE_LOGS, directory / "in.npz", path)
    return path


def test_warmup_requests(warmup_file: Path) -> None:
    notices: list[str] = []
    found = read_examples(warmup_file, RANKER, notice=notices.append)
    _assert_equal(found, [_request(7, 4), _request(2, 5)])
    assert len(notices) == 1
    assert notices[0].endswith(
        "4 of 6 records are not Predict calls of signature 'serving_default' and are not compared: "
        "2 classify_log, 1 predict_log of signature 'other', 1 session_run_log"
    )
    with pytest.warns(UserWarning, match="4 of 6 records"):
        read_examples(warmup_file, RANKER)


def test_warmup_requests_of_another_signature(warmup_file: Path) -> None:
    import msgspec

    signature = msgspec.structs.replace(RANKER, name="rank")
    with pytest.raises(ConversionError, match="has no predict_log of signature 'rank', only 2 classify_log"):
        read_examples(warmup_file, signature)


def test_logs_and_examples_in_one_file(warmup_file: Path, tmp_path: Path) -> None:
    records = [*read_records(warmup_file), _example(_request(1, 1))]
    with pytest.raises(ConversionError, match="both PredictionLog and tf.Example"):
        read_examples(_write(tmp_path / "f", records), RANKER)


def test_warmup_requests_that_do_not_fit(warmup_file: Path) -> None:
    signature = _signature(*(t for t in RANKER.inputs if t.name != "item"), _spec("item", "int64", None))
    with pytest.raises(ConversionError, match="record 0: item is int32, the signature says int64"):
        read_examples(warmup_file, signature)
