"""Conversion end to end: equal scores on fresh inputs, readable output, and every refusal without a trace on
disk."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from flax import nnx

from converters.convert import convert
from converters.errors import ConversionError, UnsupportedOpsError
from jaxrank import bundle as files
from jaxrank.certificate import CertificateError, load_examples
from jaxrank.flax_module import load_flax, load_source, rows_function
from serving.host import HostProgramRunner
from tests import models


@pytest.fixture(scope="module")
def rows_saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ranker exported with one user row for every item, as a Keras model is."""
    path = tmp_path_factory.mktemp("rows") / "saved_model"
    models.save_ranker(path, user_rows=None)
    return path


@pytest.mark.parametrize("rows", [1, 2, 7, 333])
def test_flax_equals_tensorflow(ranker_bundle: Path, ranker_saved_model: Path, rows: int) -> None:
    """1e-5 is the certificate's tolerance: float32 sums in another order."""
    features = models.ranker_request(rows, seed=1000 + rows)
    manifest = files.verify(ranker_bundle)
    blocks = HostProgramRunner(ranker_bundle, manifest).run(features)
    outputs = rows_function(ranker_bundle)(blocks.request, blocks.candidate)
    expected = models.tensorflow_outputs(ranker_saved_model, features)
    for spec, found in zip(manifest.signature.outputs, outputs, strict=True):
        np.testing.assert_allclose(found, expected[spec.name], rtol=0, atol=1e-5)


def test_scopes_from_patterns(rows_saved_model: Path, tmp_path: Path) -> None:
    manifest = convert(rows_saved_model, tmp_path / "b", request_inputs=["user_*"])
    scopes = {t.name: t.scope for t in manifest.signature.inputs}
    assert {n for n, s in scopes.items() if s == "request"} == {
        "user_age",
        "user_city",
        "user_device",
        "user_items",
    }
    assert manifest.certificate.max_abs_error <= 1e-5


def test_without_patterns_every_row_is_a_candidate(rows_saved_model: Path, tmp_path: Path) -> None:
    manifest = convert(rows_saved_model, tmp_path / "b")
    assert {t.scope for t in manifest.signature.inputs} == {"candidate"}
    assert manifest.certificate.max_abs_error <= 1e-5


def test_lookups_are_recognised_as_single_operators(ranker_bundle: Path) -> None:
    """Keras writes an integer lookup and an embedding as nine ops; they are two operators here."""
    operators = files.read_host_program(ranker_bundle).operators
    assert [o.op for o in operators if o.inputs == ("item_id",)] == ["vocabulary_lookup"]
    assert sum(o.op == "embedding_lookup" for o in operators) == 5
    assert {o.op for o in operators} == {
        "vocabulary_lookup", "embedding_lookup", "string_to_hash_bucket_fast", "multi_hot", "not_equal",
    }  # fmt: skip


def test_every_op_has_a_place(ranker_bundle: Path) -> None:
    manifest = files.read_manifest(ranker_bundle)
    assert {op.place for op in manifest.ops} == {"host", "dense", "folded"}
    assert all(op.reason for op in manifest.ops)
    dense = {op.op for op in manifest.ops if op.place == "dense"}
    assert not dense & {"LookupTableFindV2", "GatherV2", "StringToHashBucketFast", "Shape"}


def test_model_is_readable(ranker_bundle: Path) -> None:
    """Linear layers carry the names of the Keras layers; the file passes ruff and has no TensorFlow
    plumbing."""
    path = ranker_bundle / files.MODEL
    source = path.read_text()
    for name in ("attention_hidden", "attention_logit", "mlp", "click_head", "watch_head"):
        assert f"self.{name} = nnx.Linear(" in source
    assert "jnp.matmul" not in source
    imports = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {i.module if isinstance(i, ast.ImportFrom) else i.names[0].name for i in imports}
    assert {str(m).split(".")[0] for m in modules} <= {"typing", "jax", "flax", "jaxrank"}
    check = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "E,F,I",
        "--line-length",
        "110",
        str(path),
    ]
    assert subprocess.run(check, capture_output=True).returncode == 0


def test_batched_call_equals_vmapped_rows(ranker_bundle: Path) -> None:
    """For training the module takes whole batches. Tolerance: the same sums, other kernels."""
    manifest, program = files.read_manifest(ranker_bundle), files.read_host_program(ranker_bundle)
    blocks = HostProgramRunner(ranker_bundle, manifest).run(models.ranker_request(9, seed=3))
    source, ranker = load_source(ranker_bundle), load_flax(ranker_bundle)
    named = {}
    for scope, block in (("request", blocks.request), ("candidate", blocks.candidate)):
        named[scope] = {
            c.feature: jnp.asarray(
                block[:, c.offset : c.offset + int(np.prod(c.shape))].reshape(len(block), *c.shape)
            ).astype(c.dtype)
            for c in program.columns
            if c.scope == scope
        }
    batched = ranker(source.Request(**named["request"]), source.Candidate(**named["candidate"]))
    rows = rows_function(ranker_bundle)(blocks.request, blocks.candidate)
    for spec, expected in zip(manifest.signature.outputs, rows, strict=True):
        np.testing.assert_allclose(batched[spec.name], expected, rtol=0, atol=1e-6)


def test_module_trains(ranker_bundle: Path) -> None:
    """One gradient step on the generated module lowers its loss."""
    manifest = files.read_manifest(ranker_bundle)
    blocks = HostProgramRunner(ranker_bundle, manifest).run(models.ranker_request(32, seed=5))
    graph, state = nnx.split(load_flax(ranker_bundle))
    program, source = files.read_host_program(ranker_bundle), load_source(ranker_bundle)
    from jaxrank.flax_module import unpack

    request = source.Request(**unpack(jnp.asarray(blocks.request), program.columns, "request"))
    columns = [c for c in program.columns if c.scope == "candidate"]
    candidate = source.Candidate(
        **{
            c.feature: jnp.asarray(blocks.candidate[:, c.offset : c.offset + int(np.prod(c.shape))]).reshape(
                -1, *c.shape
            )
            for c in columns
        }
    )

    def loss(weights: nnx.State) -> jax.Array:
        return jnp.mean((nnx.merge(graph, weights)(request, candidate)["click"] - 1.0) ** 2)

    before, gradient = jax.value_and_grad(loss)(state)
    after = loss(jax.tree.map(lambda w, g: w - 0.05 * g, state, gradient))
    assert float(after) < float(before)


def test_examples_are_recorded_with_tensorflows_outputs(
    ranker_bundle: Path, ranker_saved_model: Path
) -> None:
    examples = load_examples(ranker_bundle)
    assert sorted({e.rows for e in examples}) == [1, 7, 200, 5000]
    expected = models.tensorflow_outputs(ranker_saved_model, dict(examples[-1].features))
    np.testing.assert_array_equal(examples[-1].outputs["click"], expected["click"])


# --- refusals: what was found, where, what to do; and nothing left behind ---


def _assert_nothing_written(directory: Path, *, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    assert {p.name for p in directory.iterdir()} == set(but)


def test_not_a_saved_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(ConversionError, match=f"{path.name} is not a TensorFlow model: it .*SavedModel"):
            convert(path, tmp_path / "out" / "b")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_corrupt_saved_model(ranker_saved_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(ranker_saved_model, broken)
    data = (broken / "saved_model.pb").read_bytes()
    (broken / "saved_model.pb").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConversionError, match=r"saved_model\.pb is damaged, it does not parse"):
        convert(broken, tmp_path / "b")
    _assert_nothing_written(tmp_path, but={"broken"})


def test_unknown_signature_lists_those_there(ranker_saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no signature 'train'; it has: serving_default"):
        convert(ranker_saved_model, tmp_path / "b", signature="train")
    _assert_nothing_written(tmp_path)


def test_pattern_that_matches_nothing(ranker_saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="'visitor_.' matches no input; the inputs are: item_id"):
        convert(ranker_saved_model, tmp_path / "b", request_inputs=["visitor_?"])
    _assert_nothing_written(tmp_path)


def _save(path: Path, function: object, *specs: tf.TensorSpec) -> Path:
    module = tf.Module()
    module.f = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(path), signatures=module.f.get_concrete_function())
    return path


def test_all_unsupported_ops_are_listed_at_once(tmp_path: Path) -> None:
    def f(x: tf.Tensor, s: tf.Tensor) -> dict[str, tf.Tensor]:
        script = tf.strings.unicode_script(tf.strings.length(tf.strings.format("{}", s)) + tf.shape(s))
        return {"y": x + tf.cast(script, tf.float32)}

    model = _save(
        tmp_path / "m", f, tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([None], tf.string, "s")
    )
    with pytest.raises(UnsupportedOpsError) as caught:
        convert(model, tmp_path / "b")
    assert {u.op for u in caught.value.found} == {"StringFormat", "UnicodeScript"}
    assert caught.value.exit_code == 2
    assert all(u.name in str(caught.value) and u.advice for u in caught.value.found)
    _assert_nothing_written(tmp_path, but={"m"})


def test_unsupported_dense_ops(tmp_path: Path) -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.math.zeta(x, x + 1.0) + tf.math.igamma(x, x + 1.0)}

    model = _save(tmp_path / "m", f, tf.TensorSpec([None], tf.float32, "x"))
    with pytest.raises(UnsupportedOpsError) as caught:
        convert(model, tmp_path / "b")
    assert {u.op for u in caught.value.found} == {"Zeta", "Igamma"}


def test_a_model_that_mixes_candidates_is_found_out(tmp_path: Path) -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.softmax(x * 3.0, axis=0)}

    model = _save(tmp_path / "m", f, tf.TensorSpec([None], tf.float32, "x"))
    manifest = convert(model, tmp_path / "b")
    assert not manifest.row_wise
    x = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    blocks = HostProgramRunner(tmp_path / "b", manifest).run({"x": x})
    (found,) = rows_function(tmp_path / "b")(blocks.request, blocks.candidate)
    np.testing.assert_allclose(found, tf.nn.softmax(x * 3.0), rtol=1e-5, atol=1e-6)


def test_examples_on_which_the_output_never_changes_prove_nothing(tmp_path: Path) -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.sigmoid(x - 1e6)}

    model = _save(tmp_path / "m", f, tf.TensorSpec([None], tf.float32, "x"))
    with pytest.raises(CertificateError, match="'y' is the same, .* --examples"):
        convert(model, tmp_path / "b")


def test_an_existing_bundle_survives_a_failed_conversion(ranker_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "b"
    shutil.copytree(ranker_bundle, copy)
    with pytest.raises(ConversionError):
        convert(tmp_path / "nothing", copy)
    files.verify(copy)
    _assert_nothing_written(tmp_path, but={"b"})


@pytest.mark.parametrize("dtype", [tf.int64, tf.bool, tf.string])
def test_outputs_that_the_host_makes(dtype: tf.DType, tmp_path: Path) -> None:
    """In their own dtype; nothing is left for the dense half."""

    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.strings.as_string(x) if dtype == tf.string else tf.cast(x % 7, dtype)}

    model = _save(tmp_path / "m", f, tf.TensorSpec([None], tf.int64, "x"))
    manifest = convert(model, tmp_path / "b")
    x = np.random.default_rng(0).integers(-9, 1 << 30, 50)
    expected = models.tensorflow_outputs(tmp_path / "m", {"x": x})["y"]
    found = HostProgramRunner(tmp_path / "b", manifest).run({"x": x}).outputs["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [tf.float64, tf.float16])
def test_outputs_that_would_change_their_dtype(dtype: tf.DType, tmp_path: Path) -> None:
    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.cast(x, dtype)}

    model = _save(tmp_path / "m", f, tf.TensorSpec([None], tf.float32, "x"))
    with pytest.raises(ConversionError, match=f"output 'y' is {dtype.name}; outputs may be float32"):
        convert(model, tmp_path / "b")


def test_a_model_that_draws_random_numbers(tmp_path: Path) -> None:
    model = _save(
        tmp_path / "m",
        lambda x: {"y": x + tf.random.uniform([]) * 1e-7},
        tf.TensorSpec([None], tf.float32, "x"),
    )
    with pytest.raises(ConversionError, match="draws random numbers"):
        convert(model, tmp_path / "b")


def test_a_model_that_behaves_otherwise_on_many_rows(tmp_path: Path) -> None:
    """The certificate looks at as many candidates as the bundle takes, too."""

    def f(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + tf.cast(tf.shape(x)[0] > 300, tf.float32)}

    model = _save(tmp_path / "m", f, tf.TensorSpec([None], tf.float32, "x"))
    with pytest.raises(CertificateError, match="5000 candidates"):
        convert(model, tmp_path / "b")
