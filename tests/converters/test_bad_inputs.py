"""What cannot be converted: one kind of error that says what was found and what to do, exit code 2, and
nothing left on disk."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from converters.convert import convert, dry_run
from converters.errors import ConversionError, UnsupportedOpsError
from jaxrank.certificate import CertificateError
from jaxrank.errors import DestinationError, JaxrankError
from tests.command_line import jaxrank
from tests.zoo.saving import graph_session, predict_signature, save_v1

v1 = tf.compat.v1
JAXRANK = str(Path(sys.executable).parent / "jaxrank")
TABLE = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


def save(path: Path, function: Callable[..., Any], *specs: Any, **owned: Any) -> Path:
    module = tf.Module()
    for name, value in owned.items():
        setattr(module, name, value)
    module.serve = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(path), signatures=module.serve.get_concrete_function())
    return path


def spec(name: str, dtype: tf.DType = tf.float32, *shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec([None, *shape], dtype, name)


X = spec("x", tf.float32, 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that converts."""
    weights = tf.Variable(TABLE[:4, :1], name="weights")
    return save(tmp_path / "m", lambda x: {"y": tf.squeeze(x @ weights, 1)}, X, weights=weights)


@contextlib.contextmanager
def refused(directory: Path, match: str, kind: type[Exception] = ConversionError) -> Iterator[None]:
    """The body raises exactly this kind of error, and leaves the directory as it is."""
    before = sorted(p.relative_to(directory) for p in directory.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        yield
    assert isinstance(caught.value, JaxrankError), caught.type
    assert caught.value.exit_code == 2
    assert sorted(p.relative_to(directory) for p in directory.rglob("*")) == before


# --- files ---


def not_there(directory: Path) -> Path:
    return directory / "nothing"


def empty_directory(directory: Path) -> Path:
    (directory / "empty").mkdir()
    return directory / "empty"


def without_its_graph(directory: Path) -> Path:
    path = save(directory / "m", lambda x: {"y": x}, X)
    (path / "saved_model.pb").unlink()
    return path


def an_empty_saved_model(directory: Path) -> Path:
    (directory / "m").mkdir()
    (directory / "m" / "saved_model.pb").write_bytes(b"")
    return directory / "m"


def half_a_saved_model(directory: Path) -> Path:
    path = save(directory / "m", lambda x: {"y": x}, X)
    data = (path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(data[: len(data) // 2])
    return path


def noise(directory: Path) -> Path:
    (directory / "m").mkdir()
    (directory / "m" / "saved_model.pb").write_bytes(np.random.default_rng(0).bytes(5000))
    return directory / "m"


def text_of_a_saved_model(directory: Path) -> Path:
    (directory / "m").mkdir()
    (directory / "m" / "saved_model.pbtxt").write_text("meta_graphs { what is this }")
    return directory / "m"


def text_as_pb(directory: Path) -> Path:
    (directory / "notes.pb").write_text("This is not a graph, it is a text about one.\n")
    return directory / "notes.pb"


def text_as_pbtxt(directory: Path) -> Path:
    (directory / "notes.pbtxt").write_text("This is not a graph.\n")
    return directory / "notes.pbtxt"


def another_file(directory: Path) -> Path:
    (directory / "model.onnx").write_bytes(b"")
    return directory / "model.onnx"


def more_than_two_gigabytes(directory: Path) -> Path:
    """A sparse file: only its size is looked at."""
    with (directory / "huge.pb").open("wb") as file:
        file.truncate((1 << 31) + 10)
    return directory / "huge.pb"


def a_saved_model_of_more_than_two_gigabytes(directory: Path) -> Path:
    (directory / "m").mkdir()
    with (directory / "m" / "saved_model.pb").open("wb") as file:
        file.truncate((1 << 31) + 10)
    return directory / "m"


NOT_MODELS = [
    (not_there, "nothing is not a TensorFlow model: it does not exist"),
    (empty_directory, "empty is not a TensorFlow model: it has no saved_model.pb and no checkpoint"),
    (without_its_graph, "m is not a TensorFlow model: it has no saved_model.pb"),
    (an_empty_saved_model, "no graph tagged 'serve'|does not parse"),
    (half_a_saved_model, r"saved_model\.pb is damaged, it does not parse"),
    (noise, r"saved_model\.pb is damaged, it does not parse"),
    (text_of_a_saved_model, r"saved_model\.pbtxt is damaged, it does not parse"),
    (text_as_pb, r"notes\.pb is damaged, it does not parse"),
    (text_as_pbtxt, r"notes\.pbtxt is damaged, it does not parse as a GraphDef"),
    (another_file, r"model\.onnx is not a TensorFlow model: its name does not end in \.pb"),
    (more_than_two_gigabytes, r"huge\.pb has 2048 MiB; a protobuf holds 2 GiB.*variables"),
    (a_saved_model_of_more_than_two_gigabytes, r"saved_model\.pb has 2048 MiB; a protobuf holds 2 GiB"),
]


@pytest.mark.parametrize(("make", "message"), NOT_MODELS, ids=lambda v: getattr(v, "__name__", ""))
def test_not_a_model(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with refused(tmp_path, message):
        convert(path, tmp_path / "b")
    with refused(tmp_path, message):
        dry_run(path)


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_saved_model(seed: int, model: Path, tmp_path: Path) -> None:
    """A cut or overwritten graph is an error of ours, or is still a model: no other error comes out."""
    data = bytearray((model / "saved_model.pb").read_bytes())
    rng = np.random.default_rng(seed)
    if seed % 2:
        del data[rng.integers(len(data)) :]
    else:
        at = rng.integers(len(data) - 40)
        data[at : at + 40] = rng.bytes(40)
    (model / "saved_model.pb").write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    try:
        dry_run(model)
    except (ConversionError, CertificateError) as error:
        assert str(error)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_without_a_variable(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tf.raw_ops.SaveV2(
        prefix=str(other), tensor_names=["else"], shape_and_slices=[""], tensors=[tf.constant([1.0])]
    )
    for ending in ("index", "data-00000-of-00001"):
        shutil.move(f"{other}.{ending}", model / "variables" / f"variables.{ending}")
    with refused(tmp_path, r"variables\.index has no variable .*weights.*it has: else"):
        convert(model, tmp_path / "b")


def test_a_saved_model_whose_variables_are_missing(model: Path, tmp_path: Path) -> None:
    shutil.rmtree(model / "variables")
    with refused(tmp_path, "variable .* has no value"):
        convert(model, tmp_path / "b")


def test_a_data_file_that_is_cut(model: Path, tmp_path: Path) -> None:
    (model / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    with refused(tmp_path, "is missing or shorter"):
        convert(model, tmp_path / "b")


def test_a_data_file_with_a_flipped_bit(model: Path, tmp_path: Path) -> None:
    """TensorFlow's checksum of the variable."""
    file = model / "variables" / "variables.data-00000-of-00001"
    data = bytearray(file.read_bytes())
    data[3] ^= 0x10
    file.write_bytes(data)
    with refused(tmp_path, "does not restore: .*(?i:checksum)"):
        convert(model, tmp_path / "b")


# --- graphs ---


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    """The SavedModel with its main graph changed."""
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    change(proto.meta_graphs[0].graph_def)
    (path / "saved_model.pb").write_bytes(proto.SerializeToString())
    return path


def tf1_model(path: Path, build: Callable[[Any], Any]) -> Path:
    with graph_session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        y = tf.identity(build(x), name="y")
        return save_v1(session, {"serving_default": predict_signature({"x": x}, {"y": y})}, path)


def test_an_unregistered_op(model: Path, tmp_path: Path) -> None:
    def custom(graph: Any) -> None:
        for function in graph.library.function:
            for node in function.node_def:
                if node.op == "MatMul":
                    node.op = "OurFastMatMul"

    changed(model, custom)
    with refused(
        tmp_path, "(?s)OurFastMatMul.*custom op that this TensorFlow does not have", UnsupportedOpsError
    ):
        convert(model, tmp_path / "b")


def test_a_cycle(tmp_path: Path) -> None:
    path = tf1_model(tmp_path, lambda x: tf.exp(tf.tanh(tf.reduce_sum(x, 1), name="t"), name="e"))

    def cycle(graph: Any) -> None:
        next(n for n in graph.node if n.name == "t").input[0] = "e"

    changed(path, cycle)
    with refused(tmp_path, "e depends on itself"):
        convert(path, tmp_path / "b")


def test_an_input_that_is_not_there(tmp_path: Path) -> None:
    path = tf1_model(tmp_path, lambda x: tf.exp(tf.reduce_sum(x, 1), name="e"))

    def dangle(graph: Any) -> None:
        next(n for n in graph.node if n.name == "e").input[0] = "gone"

    changed(path, dangle)
    with refused(tmp_path, "gone"):
        convert(path, tmp_path / "b")


def test_an_output_in_a_branch_that_is_never_taken(tmp_path: Path) -> None:
    def dead(x: Any) -> Any:
        return tf.raw_ops.Switch(data=tf.reduce_sum(x, 1), pred=tf.constant(False))[1]

    path = tf1_model(tmp_path, dead)
    with refused(tmp_path, "branch that is never taken|never taken|dead"):
        convert(path, tmp_path / "b")


def test_a_dead_subgraph_is_no_hindrance(tmp_path: Path) -> None:
    """What no output needs may be anything that TensorFlow registers."""

    def with_training(x: Any) -> Any:
        labels = v1.placeholder(tf.float32, None, name="labels")
        tf.reduce_mean(tf.random.normal(tf.shape(x)) * labels)
        return tf.reduce_sum(x * TABLE[0], 1)

    report = dry_run(tf1_model(tmp_path, with_training))
    assert report.unsupported == ()
    assert not any("Random" in op.op for op in report.ops)


def test_an_input_of_unknown_rank(tmp_path: Path) -> None:
    path = save(tmp_path / "m", lambda x: {"y": tf.exp(x)}, tf.TensorSpec(None, tf.float32, "x"))
    with refused(tmp_path, "'x' .* has an unknown rank; give it a shape"):
        convert(path, tmp_path / "b")


def test_a_rank_that_depends_on_the_request(tmp_path: Path) -> None:
    def serve(x: tf.Tensor, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        rank = tf.reduce_max(ids) % 2 + 1
        shape = tf.concat([tf.shape(x)[:1], tf.ones([rank], tf.int32) * 2], 0)
        return {"y": tf.reshape(tf.tile(x[:, :1], [1, 2**rank]), shape)}

    path = save(tmp_path / "m", serve, X, spec("ids", tf.int32))
    with refused(tmp_path, r"concat has shape .* for one candidate: its size depends on the request"):
        convert(path, tmp_path / "b")


def test_a_scalar_input(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m", lambda x, s: {"y": tf.reduce_sum(x, 1) * s}, X, tf.TensorSpec([], tf.float32, "s")
    )
    with refused(tmp_path, "'s' is a scalar; give it a leading row dimension"):
        convert(path, tmp_path / "b")


def test_an_input_with_a_fixed_number_of_rows(tmp_path: Path) -> None:
    path = save(tmp_path / "m", lambda x: {"y": tf.reduce_sum(x, 1)}, tf.TensorSpec([8, 4], tf.float32, "x"))
    with refused(tmp_path, "'x' has a fixed number of rows, 8; export"):
        convert(path, tmp_path / "b")


@pytest.mark.parametrize("dtype", [tf.float64, tf.complex64, tf.float16], ids=lambda d: d.name)
def test_an_output_of_a_dtype_that_we_do_not_give(dtype: tf.DType, tmp_path: Path) -> None:
    path = save(tmp_path / "m", lambda x: {"y": tf.cast(tf.reduce_sum(x * x, 1), dtype)}, X)
    with refused(tmp_path, f"(?s)'y' is {dtype.name}; outputs may be float32|{dtype.name}"):
        convert(path, tmp_path / "b")


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: tf.random.uniform(tf.shape(x)),
        lambda x: tf.random.stateless_normal(tf.shape(x), [1, 2]),
        lambda x: tf.cast(tf.random.categorical(x, 1), tf.float32),
        lambda x: tf.random.shuffle(x),
        lambda x: tf.nn.dropout(x, 0.5),
    ],
    ids=["uniform", "stateless", "categorical", "shuffle", "dropout"],
)
def test_random_numbers(draw: Callable[[Any], Any], tmp_path: Path) -> None:
    path = save(tmp_path / "m", lambda x: {"y": tf.reduce_sum(draw(x), 1)}, X)
    with refused(tmp_path, "draws random numbers"):
        convert(path, tmp_path / "b")


def test_all_unsupported_ops_at_once(tmp_path: Path) -> None:
    """Host and dense ones."""

    def serve(x: tf.Tensor, s: tf.Tensor) -> dict[str, tf.Tensor]:
        text = tf.cast(tf.strings.unicode_script(tf.strings.length(s)), tf.float32)
        return {"y": tf.math.igamma(tf.abs(x[:, 0]) + 1.0, tf.abs(x[:, 1])) + text}

    path = save(tmp_path / "m", serve, X, spec("s", tf.string))
    with refused(tmp_path, "(?s)UnicodeScript.*Igamma|Igamma.*UnicodeScript", UnsupportedOpsError):
        convert(path, tmp_path / "b")
    assert {u.op for u in dry_run(path).unsupported} == {"UnicodeScript", "Igamma"}


def test_values_of_unknown_number_that_cross(tmp_path: Path) -> None:
    """As many rows as there are distinct words cannot go to a program of fixed shapes."""

    def serve(words: tf.Tensor, x: tf.Tensor) -> dict[str, tf.Tensor]:
        unique, _ = tf.unique(tf.strings.to_hash_bucket_fast(tf.reshape(words, [-1]), 20))
        rows = tf.gather(TABLE, unique)
        return {"y": tf.reduce_sum(tf.nn.softmax(x @ tf.transpose(rows)) ** 2, 1)}

    path = save(tmp_path / "m", serve, spec("words", tf.string, 3), X)
    with refused(tmp_path, "GatherV2 has shape .*its first dimension must be the rows.*cannot be cut there"):
        convert(path, tmp_path / "b")


# --- options ---


OPTIONS = [
    ({"signature": "train"}, "no signature 'train'; it has: serving_default .*--signature"),
    ({"inputs": ["z"]}, "--inputs 'z': the signature has x"),
    ({"outputs": ["z"]}, "--outputs 'z': the signature has y"),
    ({"rename": {"z": "w"}}, "--rename z: there is no such input or output; there are: x, y"),
    ({"request_inputs": ["user_*"]}, "--request-inputs 'user_.' matches no input; the inputs are: x"),
    ({"request_inputs": ["*"]}, "every input is request-scope"),
    ({"op_plugins": ["no_such_module"]}, "--op-plugin no_such_module: the module does not load"),
    ({"op_plugins": ["json"]}, "--op-plugin json: the module needs a dict LOWERINGS"),
    ({"examples": Path("/nothing.npz")}, "nothing.npz"),
]


@pytest.mark.parametrize(
    ("options", "message"), OPTIONS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else ""
)
def test_an_option_that_does_not_fit(options: dict, message: str, model: Path, tmp_path: Path) -> None:
    with refused(tmp_path, message):
        convert(model, tmp_path / "b", **options)


def test_two_inputs_renamed_to_one(tmp_path: Path) -> None:
    path = save(tmp_path / "m", lambda x, z: {"y": x + z}, spec("x"), spec("z"))
    with refused(tmp_path, "--rename gives two tensors the same name"):
        convert(path, tmp_path / "b", rename={"x": "w", "z": "w"})


def test_an_input_that_the_outputs_need_is_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "m", lambda x, z: {"y": x + z}, spec("x"), spec("z"))
    with refused(tmp_path, "placeholder .*z is not an input of the signature.*--inputs"):
        convert(path, tmp_path / "b", inputs=["x"])


def test_a_plugin_that_fails(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text(
        "def matmul(a, i):\n    raise KeyError('b')\n\nLOWERINGS = {'MatMul': matmul}\n"
    )
    (tmp_path / "syntax_plugin.py").write_text("def (\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with refused(tmp_path, "--op-plugin syntax_plugin: the module does not load: SyntaxError"):
        convert(model, tmp_path / "b", op_plugins=["syntax_plugin"])
    with refused(tmp_path, "(?s)plugin.*MatMul.*KeyError"):
        convert(model, tmp_path / "b", op_plugins=["broken_plugin"])


def test_recorded_ids_beyond_the_table(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m", lambda ids: {"y": tf.reduce_sum(tf.gather(TABLE, ids), 1)}, spec("ids", tf.int64)
    )
    for ids in ([3, 20], [-1, 4]):
        np.savez(tmp_path / "e.npz", **{"0/ids": np.array(ids), "1/ids": np.arange(9)})
        with refused(tmp_path, r"TensorFlow refuses .*(not in \[0, 20\)|out of range|indices)"):
            convert(path, tmp_path / "b", examples=tmp_path / "e.npz")


# --- destinations ---


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_destination_that_is_not_writable(model: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with refused(tmp_path, "b cannot be written: .*Permission denied", DestinationError):
        convert(model, tmp_path / "locked" / "b")


def test_a_destination_below_a_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused(tmp_path, "file.b cannot be written: .*File exists", DestinationError):
        convert(model, tmp_path / "file" / "b")


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files is what a full disk is: writing the table fails."""
    table = tf.Variable(np.tile(TABLE, (5000, 1)), name="table")
    path = save(
        tmp_path / "m",
        lambda ids: {"y": tf.reduce_sum(tf.gather(table, ids), 1)},
        spec("ids", tf.int64),
        table=table,
    )
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        ["prlimit", f"--fsize={1 << 20}", JAXRANK, "convert", str(path), "-o", str(tmp_path / "b")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "File too large" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [["no_such_model"], ["{model}", "--signature", "train"], ["{model}", "--inputs", "z"]],
    ids=str,
)
def test_exit_code_of_the_command_line(arguments: list[str], model: Path, tmp_path: Path) -> None:
    given = [a.format(model=model) for a in arguments]
    before = sorted(tmp_path.rglob("*"))
    done = jaxrank("convert", *given, "-o", tmp_path / "b")
    assert done.returncode == 2
    assert "error: ConversionError" in done.stderr and "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
