"""Every format of models comes down to one signature, its weights, and TensorFlow's own answers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from converters.errors import ConversionError, UnsupportedOpsError
from converters.loaders import load
from converters.source import SourceModel
from tests.zoo.references import frozen_graph, keras_file, session
from tests.zoo.saving import control_flow_v1, graph_session, predict_signature

v1 = tf.compat.v1
WORDS = ["amsterdam", "köln", "東京", "", "z"]


def features(rows: int, seed: int) -> dict[str, np.ndarray]:
    """A request for the graphs below: known and unknown words, ids, numbers."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((rows, 4)).astype(np.float32),
        "word": rng.choice(np.array([*(w.encode() for w in WORDS), b"?"], object), rows),
    }


def graph(vocabulary: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A TF1 graph of `x` and `word`: a vocabulary (of a file, if one is given), a table, a layer."""
    x = v1.placeholder(tf.float32, [None, 4], name="x")
    word = v1.placeholder(tf.string, [None], name="word")
    if vocabulary is None:
        known: Any = tf.lookup.KeyValueTensorInitializer(
            [w.encode() for w in WORDS], np.arange(1, len(WORDS) + 1)
        )
    else:
        known = tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
    index = tf.lookup.StaticHashTable(known, 0).lookup(word)
    initializer = v1.random_normal_initializer(seed=1)
    table = v1.get_variable("word_embedding", [len(WORDS) + 1, 4], initializer=initializer)
    kernel = v1.get_variable("kernel", [4, 1], initializer=initializer)
    both = x * tf.gather(table, index)
    score = tf.squeeze(tf.matmul(both, kernel), 1, name="score")
    return {"x": x, "word": word}, {"score": score, "index": tf.identity(index, name="index")}


def start(session: Any) -> None:
    session.run([v1.global_variables_initializer(), v1.tables_initializer()])


def assert_answers(
    model: SourceModel, reference: Callable[[Path, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
) -> None:
    for rows in (1, 2, 33):
        request = features(rows, rows)
        found, expected = model.predict(request), reference(model.path, request)
        assert set(found) == set(expected)
        for name, value in found.items():
            assert value.dtype == expected[name].dtype
            np.testing.assert_array_equal(value, expected[name])


def signature_of(model: SourceModel) -> tuple[dict[str, tuple], dict[str, tuple]]:
    return (
        {t.name: (t.dtype, t.shape) for t in model.inputs},
        {t.name: (t.dtype, t.shape) for t in model.outputs},
    )


EXPECTED = (
    {"word": ("string", (None,)), "x": ("float32", (None, 4))},
    {"index": ("int64", (None,)), "score": ("float32", (None,))},
)

# --- TF1 SavedModels ---


def save_tf1(directory: Path, vocabulary: Path | None = None, **signatures: Sequence[str]) -> Path:
    """`signatures` gives the outputs of each; `serving_default` has all by default."""
    path = directory / "saved_model"
    with graph_session() as session:
        inputs, outputs = graph(vocabulary)
        start(session)
        made = {
            name: predict_signature(inputs, {o: outputs[o] for o in of})
            for name, of in (signatures or {"serving_default": tuple(outputs)}).items()
        }
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map=made,
            main_op=v1.tables_initializer(),
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        )
        builder.save()
    return path


@pytest.mark.parametrize("reference_variables", [False, True], ids=["resource", "reference"])
def test_tf1_saved_model(reference_variables: bool, tmp_path: Path) -> None:
    if reference_variables:
        v1.disable_resource_variables()
    try:
        path = save_tf1(tmp_path)
    finally:
        v1.enable_resource_variables()
    model = load(path)
    assert (model.format, model.signature_name) == ("saved_model", "serving_default")
    assert model.method_name == "tensorflow/serving/predict"
    assert signature_of(model) == EXPECTED
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    assert {w.name for w in model.weights.values()} == {"word_embedding", "kernel"}
    for weight in model.weights.values():
        np.testing.assert_array_equal(weight.array(), reader.get_tensor(weight.name))
    assert_answers(model, session())


def test_text_of_a_saved_model(tmp_path: Path) -> None:
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    path = save_tf1(tmp_path)
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    (path / "saved_model.pbtxt").write_text(text_format.MessageToString(proto))
    (path / "saved_model.pb").unlink()
    assert_answers(load(path), session())


def test_a_vocabulary_file_among_the_assets(tmp_path: Path) -> None:
    """The file is read from the SavedModel; that of the training machine is gone."""
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_bytes("\n".join(WORDS[:3]).encode())
    path = save_tf1(tmp_path, vocabulary)
    vocabulary.unlink()
    model = load(path)
    (table,) = [n.name for n in model.graph_def.node if n.op == "HashTableV2"]
    contents = model.tables(table)
    found = dict(zip(contents.keys.tolist(), contents.values.tolist(), strict=True))
    assert found == {w.encode(): i for i, w in enumerate(WORDS[:3])}
    assert_answers(model, session())


def test_a_vocabulary_file_that_is_missing(tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("a\nb")
    path = save_tf1(tmp_path, vocabulary)
    (path / "assets" / "words.txt").unlink()
    model = load(path)
    (table,) = [n.name for n in model.graph_def.node if n.op == "HashTableV2"]
    with pytest.raises(
        ConversionError, match=r"lookup tables cannot be filled: .*words\.txt.*vocabulary file"
    ):
        model.tables(table)


def test_several_signatures(tmp_path: Path) -> None:
    path = save_tf1(tmp_path, None, score=["score"], both=["score", "index"])
    assert [t.name for t in load(path, "score").outputs] == ["score"]
    model = load(path, "both")
    assert [t.name for t in model.outputs] == ["index", "score"]
    assert_answers(model, session("both"))
    with pytest.raises(
        ConversionError, match="no signature 'serving_default'; it has: both, score .*--signature"
    ):
        load(path)


def test_selected_inputs_and_outputs(tmp_path: Path) -> None:
    path = save_tf1(tmp_path)
    model = load(path, inputs=["word"], outputs=["index"])
    assert signature_of(model) == ({"word": EXPECTED[0]["word"]}, {"index": EXPECTED[1]["index"]})
    request = features(5, 5)
    np.testing.assert_array_equal(
        model.predict({"word": request["word"]})["index"], session()(path, request)["index"]
    )
    for option, wanted in (("inputs", "word, x"), ("outputs", "index, score")):
        with pytest.raises(ConversionError, match=f"--{option} 'other': the signature has {wanted}"):
            load(path, **{option: ["other"]})


def test_no_graph_for_serving(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with graph_session() as session:
        graph()
        start(session)
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["train"])
        builder.save()
    with pytest.raises(ConversionError, match="no graph tagged 'serve'; its graphs are tagged: .'train'"):
        load(path)


def test_the_graph_for_serving_on_a_cpu_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "m"
    builder = v1.saved_model.Builder(str(path))
    for number, tags in enumerate((["serve", "tpu"], ["serve"])):
        with graph_session() as session:
            inputs, outputs = graph()
            named = predict_signature(inputs, {f"score_{number}": outputs["score"]})
            start(session)
            options = {"signature_def_map": {"serving_default": named}, "main_op": v1.tables_initializer()}
            if number == 0:
                builder.add_meta_graph_and_variables(session, tags, **options)
            else:
                builder.add_meta_graph(tags, **options)
    builder.save()
    assert [t.name for t in load(path).outputs] == ["score_1"]


def test_a_sparse_entry_of_a_signature(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with graph_session() as running:
        bag = v1.sparse_placeholder(tf.int64, [None, 9], name="bag")
        x = v1.placeholder(tf.float32, [None], name="x")
        total = x + tf.cast(tf.sparse.reduce_sum(bag, 1), tf.float32)
        build = v1.saved_model.build_signature_def
        info = v1.saved_model.utils.build_tensor_info
        definition = build({"bag": info(bag), "x": info(x)}, {"y": info(total)}, "tensorflow/serving/predict")
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            running, ["serve"], signature_def_map={"serving_default": definition}
        )
        builder.save()
        model = load(path)
        parts = {t.name: (t.dtype, t.shape, t.part, t.feature) for t in model.inputs}
        assert parts == {
            "bag/indices": ("int64", (None, 2), "sparse_indices", "bag"),
            "bag/values": ("int64", (None,), "sparse_values", "bag"),
            "bag/shape": ("int64", (2,), "sparse_shape", "bag"),
            "x": ("float32", (None,), "rows", ""),
        }
        request = {
            "bag/indices": np.array([[0, 1], [0, 2], [2, 0]]),
            "bag/values": np.array([5, -3, 1 << 40]),
            "bag/shape": np.array([3, 9]),
            "x": np.array([0.5, 1.5, 2.5], np.float32),
        }
        expected = running.run(
            total,
            {
                bag: v1.SparseTensorValue(
                    request["bag/indices"], request["bag/values"], request["bag/shape"]
                ),
                x: request["x"],
            },
        )
    np.testing.assert_array_equal(model.predict(request)["y"], expected)


# --- TF2 SavedModels ---


def save_tf2(path: Path, function: Callable[..., Any], *specs: Any, **owned: Any) -> Path:
    module = tf.Module()
    for name, value in owned.items():
        setattr(module, name, value)
    module.serve = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(path), signatures=module.serve.get_concrete_function())
    return path


def test_tf2_saved_model(tmp_path: Path) -> None:
    """Without an input signature, too: the concrete function decides."""
    module = tf.Module()
    module.table = tf.Variable(np.random.default_rng(1).standard_normal((6, 4)), dtype=tf.float32)
    module.index = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            [w.encode() for w in WORDS], tf.range(1, len(WORDS) + 1, dtype=tf.int64)
        ),
        0,
    )

    @tf.function
    def serve(x: tf.Tensor, word: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"score": tf.reduce_sum(x * tf.gather(module.table, module.index.lookup(word)), 1)}

    module.serve = serve
    concrete = serve.get_concrete_function(
        tf.TensorSpec([None, 4], tf.float32, "x"), tf.TensorSpec([None], tf.string, "word")
    )
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=concrete)
    model = load(tmp_path / "m")
    assert signature_of(model) == (EXPECTED[0], {"score": EXPECTED[1]["score"]})
    ((_, weight),) = model.weights.items()
    np.testing.assert_array_equal(weight.array(), module.table.numpy())
    assert_answers(model, lambda _, f: {"score": serve(**f)["score"].numpy()})


def test_a_saved_model_without_variables(tmp_path: Path) -> None:
    path = save_tf2(tmp_path / "m", lambda x: {"y": x * 2.0}, tf.TensorSpec([None], tf.float32, "x"))
    model = load(path)
    assert not model.weights
    assert model.predict({"x": np.float32([1, 2])})["y"].tolist() == [2.0, 4.0]
    for file in (path / "variables").iterdir():
        file.unlink()
    (path / "variables").rmdir()
    assert load(path).predict({"x": np.float32([3])})["y"].tolist() == [6.0]


def test_a_warm_up_file(tmp_path: Path) -> None:
    path = save_tf2(tmp_path / "m", lambda x: {"y": x * 2.0}, tf.TensorSpec([None], tf.float32, "x"))
    assert load(path).warmup is None
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"")
    assert load(path).warmup == path / "assets.extra" / "tf_serving_warmup_requests"


def test_sparse_and_ragged_inputs_of_tf2(tmp_path: Path) -> None:
    """TensorFlow exports the parts as plain tensors, numbered."""

    def serve(tags: tf.RaggedTensor, bag: tf.SparseTensor, x: tf.Tensor) -> dict[str, tf.Tensor]:
        lengths = tf.cast(tags.row_lengths(), tf.float32)
        return {"y": x + lengths + tf.cast(tf.sparse.reduce_sum(bag, 1), tf.float32)}

    path = save_tf2(
        tmp_path / "m",
        serve,
        tf.RaggedTensorSpec([None, None], tf.string, 1),
        tf.SparseTensorSpec([None, None], tf.int64),
        tf.TensorSpec([None], tf.float32, "x"),
    )
    model = load(path)
    parts = {t.name: (t.part, t.feature) for t in model.inputs}
    sparse = sorted(n for n, (part, _) in parts.items() if part.startswith("sparse"))
    ragged = sorted(n for n, (part, _) in parts.items() if part in ("flat_values", "row_splits"))
    assert len(sparse) == 3 and len(ragged) == 2 and parts["x"] == ("rows", "")
    assert {parts[n] for n in sparse} == {
        ("sparse_indices", sparse[0]),
        ("sparse_values", sparse[0]),
        ("sparse_shape", sparse[0]),
    }
    assert [parts[n] for n in ragged] == [("flat_values", ragged[0]), ("row_splits", ragged[0])]
    tags = tf.ragged.constant([["a", "b"], [], ["c"]], dtype=tf.string)
    bag = tf.sparse.from_dense(tf.constant([[0, 2], [3, 0], [0, 0]], tf.int64))
    x = tf.constant([0.5, 0.25, 0.125])
    request = dict(
        zip(
            (*ragged, *sparse, "x"),
            (tags.flat_values, tags.row_splits, bag.indices, bag.values, bag.dense_shape, x),
            strict=True,
        )
    )
    found = model.predict({n: v.numpy() for n, v in request.items()})["y"]
    np.testing.assert_array_equal(found, serve(tags, bag, x)["y"].numpy())


def test_a_ragged_input_of_two_dimensions(tmp_path: Path) -> None:
    spec = tf.RaggedTensorSpec([None, None, None], tf.int64, 2)

    def serve(r: tf.RaggedTensor) -> dict[str, tf.Tensor]:
        return {"y": tf.cast(tf.reduce_sum(tf.reduce_sum(r, 2), 1), tf.float32)}

    model = load(save_tf2(tmp_path / "m", serve, spec))
    names, feature = [t.name for t in model.inputs], model.inputs[0].name
    assert [(t.part, t.feature) for t in model.inputs] == [
        ("flat_values", feature),
        ("row_splits", feature),
        ("row_splits", feature),
    ]
    value = tf.ragged.constant([[[1, 2], []], [], [[3], [4, 5, 6]]], dtype=tf.int64)
    # Splits of the rows come before those of what is in them.
    request = dict(zip(names, (value.flat_values, *value.nested_row_splits), strict=True))
    found = model.predict({n: v.numpy() for n, v in request.items()})["y"]
    assert found.tolist() == [3.0, 0.0, 18.0]


PLAIN = [
    pytest.param([("x", tf.int64, [None]), ("x_1", tf.int64, [None])], id="two vectors of ids"),
    pytest.param([("x", tf.float32, [None]), ("x_1", tf.int64, [None])], id="a number and an id"),
    pytest.param(
        [("x", tf.float32, [None, 4]), ("x_1", tf.int64, [None]), ("x_2", tf.float32, [None])], id="three"
    ),
    pytest.param(
        [("x", tf.int64, [None, 2]), ("x_1", tf.float32, [None]), ("x_2", tf.int64, [2])],
        id="as sparse ones are",
        marks=pytest.mark.xfail(
            strict=True,
            reason="shapes and dtypes alone decide that an input is sparse; a constant-size x_2 is rare",
        ),
    ),
]


@pytest.mark.parametrize("inputs", PLAIN)
def test_plain_inputs_with_the_names_of_parts(
    inputs: list[tuple[str, tf.DType, list]], tmp_path: Path
) -> None:
    def serve(*given: tf.Tensor) -> dict[str, tf.Tensor]:
        table = tf.constant([1.0, 2.0, 3.0, 4.0])
        total = tf.zeros([tf.shape(given[0])[0]])
        for value in given:
            if value.dtype == tf.int64:
                value = tf.gather(table, value % 4)
            if value.shape.rank == 2:
                value = tf.reduce_sum(value, 1)
            total += value if value.shape[0] != 2 else tf.reduce_sum(value)
        # What parts of ragged tensors are read with: slices, on columns and from the second row on.
        return {"y": total + tf.reduce_sum(total[1:]) * 0.0}

    specs = [tf.TensorSpec(shape, dtype, name) for name, dtype, shape in inputs]
    model = load(save_tf2(tmp_path / "m", serve, *specs))
    assert {t.name: (t.part, t.feature) for t in model.inputs} == {n: ("rows", "") for n, _, _ in inputs}


def test_plain_ids_that_are_sliced_are_not_ragged(tmp_path: Path) -> None:
    """Ids of the rows beside their neighbours: `x_1[1:]` alone is not reading splits."""

    def serve(x: tf.Tensor, x_1: tf.Tensor) -> dict[str, tf.Tensor]:
        following = tf.concat([x_1[1:], x_1[:1]], 0)
        return {"y": x * tf.cast(following, tf.float32)}

    specs = tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([None], tf.int64, "x_1")
    model = load(save_tf2(tmp_path / "m", serve, *specs))
    assert {t.name: t.part for t in model.inputs} == {"x": "rows", "x_1": "rows"}


# --- frozen graphs ---


def save_frozen(directory: Path, text: bool = False, *, tables: bool = True) -> Path:
    with graph_session() as session:
        _, outputs = graph()
        start(session)
        keep = [t.op.name for t in outputs.values()]
        if tables:
            keep += [o.name for o in session.graph.get_operations() if "InitializeTable" in o.type
                     or "TableImport" in o.type]  # fmt: skip
        frozen = v1.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), keep)
    name = "frozen.pbtxt" if text else "frozen.pb"
    return Path(tf.io.write_graph(frozen, str(directory), name, as_text=text))


def frozen_reference(path: Path, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The graph, imported and its tables filled by their own initializers."""
    if path.suffix == ".pb":
        definition = v1.GraphDef.FromString(path.read_bytes())
    else:
        from google.protobuf import text_format

        definition = text_format.Parse(path.read_text(), v1.GraphDef())
    with tf.Graph().as_default(), v1.Session() as running:
        tf.import_graph_def(definition, name="")
        operations = running.graph.get_operations()
        running.run([o for o in operations if "InitializeTable" in o.type or "TableImport" in o.type])
        feeds = {f"{name}:0": value for name, value in request.items()}
        return running.run({"score": "score:0", "index": "index:0"}, feeds)


@pytest.mark.parametrize("text", [False, True], ids=["pb", "pbtxt"])
def test_frozen_graph(text: bool, tmp_path: Path) -> None:
    path = save_frozen(tmp_path, text)
    model = load(path, inputs=["x:0", "word"], outputs=["score", "index:0"])
    assert model.format == "frozen_graph"
    assert signature_of(model) == EXPECTED
    assert_answers(model, frozen_reference)
    (table,) = [n.name for n in model.graph_def.node if n.op == "HashTableV2"]
    assert sorted(model.tables(table).keys.tolist()) == sorted(w.encode() for w in WORDS)


def test_names_of_a_frozen_graphs_tensors(tmp_path: Path) -> None:
    path = save_frozen(tmp_path)
    model = load(path, inputs=["features=x:0", "word=word"], outputs=["click=score:0"])
    assert signature_of(model) == (
        {"features": ("float32", (None, 4)), "word": ("string", (None,))},
        {"click": ("float32", (None,))},
    )
    request = features(6, 6)
    found = model.predict({"features": request["x"], "word": request["word"]})["click"]
    np.testing.assert_array_equal(found, frozen_reference(path, request)["score"])


def test_an_inner_tensor_as_an_input(tmp_path: Path) -> None:
    """What is above it is not needed."""
    path = save_frozen(tmp_path)
    model = load(path, inputs=["MatMul:0"], outputs=["score:0"])
    found = model.predict({"MatMul": np.float32([[1.5], [2.5]])})["score"]
    assert found.tolist() == [1.5, 2.5]
    with pytest.raises(ConversionError, match="--inputs 'mul:0' has an unknown rank"):
        load(path, inputs=["mul:0"], outputs=["score:0"])


def test_a_frozen_graph_without_its_table_initializers(tmp_path: Path) -> None:
    path = save_frozen(tmp_path, tables=False)
    model = load(path, inputs=["x", "word"], outputs=["score"])
    with pytest.raises(ConversionError, match="(?i)table"):
        model.predict(features(2, 2))
    (table,) = [n.name for n in model.graph_def.node if n.op == "HashTableV2"]
    with pytest.raises(ConversionError, match=f"lookup table {table} has no entries"):
        model.tables(table)


def test_what_a_frozen_graph_needs(tmp_path: Path) -> None:
    path = save_frozen(tmp_path)
    needed = "name its tensors with --inputs and --outputs. Placeholders: x, word.*nothing reads: .*score"
    with pytest.raises(ConversionError, match=needed):
        load(path)
    with pytest.raises(ConversionError, match="'other:0': the graph has no tensor other:0; placeh.* x, word"):
        load(path, inputs=["other:0"], outputs=["score"])
    with pytest.raises(ConversionError, match="--outputs 'score:1': the graph has no tensor score:1"):
        load(path, inputs=["x"], outputs=["score:1"])


def test_a_graph_that_is_not_frozen(tmp_path: Path) -> None:
    with graph_session() as session:
        graph()
        path = Path(tf.io.write_graph(session.graph_def, str(tmp_path), "g.pb", as_text=False))
    with pytest.raises(ConversionError, match=r"not frozen: it has 2 variables .*\.meta file"):
        load(path, inputs=["x"], outputs=["score"])


# --- checkpoints with a meta graph ---


def save_checkpoint(directory: Path, *, signature: bool = False, steps: Sequence[int] = (10,)) -> Path:
    with graph_session() as session:
        inputs, outputs = graph()
        start(session)
        saver = v1.train.Saver()
        prefix = ""
        for step in steps:
            for variable in v1.global_variables():
                variable.load(session.run(variable) + np.float32(0.125), session)
            prefix = saver.save(session, str(directory / "model.ckpt"), step)
        if signature:
            meta = v1.MetaGraphDef.FromString(Path(f"{prefix}.meta").read_bytes())
            meta.signature_def["serving_default"].CopyFrom(predict_signature(inputs, outputs))
            Path(f"{prefix}.meta").write_bytes(meta.SerializeToString())
    return Path(prefix)


def checkpoint_reference(prefix: Path) -> Callable[[Path, Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    def reference(_: Path, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with tf.Graph().as_default(), v1.Session() as running:
            v1.train.import_meta_graph(f"{prefix}.meta").restore(running, str(prefix))
            running.run(v1.tables_initializer())
            feeds = {f"{name}:0": value for name, value in request.items()}
            return running.run({"score": "score:0", "index": "index:0"}, feeds)

    return reference


@pytest.mark.parametrize("given", ["prefix", "meta", "directory"])
@pytest.mark.parametrize("signature", [False, True], ids=["named tensors", "signature"])
def test_checkpoint(given: str, signature: bool, tmp_path: Path) -> None:
    """Of a directory the newest checkpoint is taken."""
    prefix = save_checkpoint(tmp_path, signature=signature, steps=(10, 20))
    path = {"prefix": prefix, "meta": Path(f"{prefix}.meta"), "directory": tmp_path}[given]
    options = {} if signature else {"inputs": ["x:0", "word:0"], "outputs": ["score:0", "index:0"]}
    model = load(path, **options)
    assert (model.format, model.path) == ("checkpoint", path)
    assert signature_of(model) == EXPECTED
    assert_answers(model, checkpoint_reference(prefix))


def test_checkpoint_without_a_signature(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no signature; name its tensors with --inputs and --outputs"):
        load(save_checkpoint(tmp_path))


def test_checkpoint_without_a_meta_graph(tmp_path: Path) -> None:
    prefix = save_checkpoint(tmp_path)
    Path(f"{prefix}.meta").unlink()
    for path in (prefix, tmp_path):
        with pytest.raises(ConversionError, match="not a TensorFlow model"):
            load(path)


def test_checkpoint_without_one_of_the_variables(tmp_path: Path) -> None:
    prefix = save_checkpoint(tmp_path)
    with tf.Graph().as_default(), v1.Session() as session:
        only = v1.get_variable("kernel", [4, 1])
        session.run(only.initializer)
        v1.train.Saver([only]).save(session, str(prefix), write_meta_graph=False)
    with pytest.raises(ConversionError, match="has no variable 'word_embedding'.*it has: kernel"):
        load(prefix, inputs=["x", "word"], outputs=["score"])


# --- Keras files ---


def keras_model() -> keras.Model:
    keras.utils.set_random_seed(5)
    x, word = keras.Input((4,), name="x"), keras.Input((), name="word", dtype="string")
    index = keras.layers.StringLookup(vocabulary=[w for w in WORDS if w])(word)
    y = keras.layers.Dense(3, activation="relu")(x) * keras.layers.Embedding(6, 3)(index)
    return keras.Model({"x": x, "word": word}, {"score": keras.layers.Dense(1, name="score")(y)})


def numeric_keras_model() -> keras.Model:
    keras.utils.set_random_seed(6)
    x = keras.Input((4,), name="x")
    h = keras.layers.BatchNormalization()(keras.layers.Dense(8, activation="tanh")(x))
    return keras.Model({"x": x}, {"score": keras.layers.Dense(1)(keras.layers.Dropout(0.3)(h))})


@pytest.mark.parametrize(("suffix", "kind"), [(".keras", "keras"), (".h5", "h5"), (".hdf5", "h5")])
@pytest.mark.filterwarnings("ignore")
def test_keras_file(suffix: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    model = keras_model() if suffix == ".keras" else numeric_keras_model()
    model.save(path)
    source = load(path)
    assert (source.format, source.path) == (kind, path)
    for rows in (1, 2, 33):
        request = {t.name: features(rows, rows)[t.name] for t in source.inputs}
        expected = keras_file()(path, request)["score"]
        np.testing.assert_allclose(source.predict(request)["score"], expected, rtol=1e-6, atol=1e-6)


def test_a_file_that_keras_does_not_know(tmp_path: Path) -> None:
    for name in ("m.keras", "m.h5"):
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(ConversionError, match=rf"{name} does not load as a Keras model"):
            load(tmp_path / name)


# --- control flow, and ops that are not there ---


def test_tf1_control_flow_is_restored(tmp_path: Path) -> None:
    with graph_session() as session, control_flow_v1():
        x = v1.placeholder(tf.float32, [None], name="x")
        y = tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * 1.5), [tf.constant(0), x])[1]
        tf.identity(y, name="y")
        path = Path(tf.io.write_graph(session.graph_def, str(tmp_path), "g.pb", as_text=False))
    model = load(path, inputs=["x"], outputs=["y"])
    value = np.float32([1, 2])
    np.testing.assert_array_equal(
        model.predict({"x": value})["y"], frozen_graph(["x:0"], ["y:0"])(path, {"x": value})["y"]
    )


def test_ops_that_are_not_registered(tmp_path: Path) -> None:
    """In the graph and in its functions, all at once."""
    path = save_tf2(tmp_path / "m", lambda x: {"y": tf.exp(x)}, tf.TensorSpec([None], tf.float32, "x"))
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph_def = proto.meta_graphs[0].graph_def
    graph_def.node.add(name="custom/one", op="TeamsOwnOp")
    for function in graph_def.library.function:
        for node in function.node_def:
            if node.op == "Exp":
                node.op = "TeamsExp"
    (path / "saved_model.pb").write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedOpsError) as caught:
        load(path)
    assert {u.op for u in caught.value.found} == {"TeamsOwnOp", "TeamsExp"}
    assert "custom/one" in str(caught.value) and "custom op" in str(caught.value)
