"""`--dump-ir`: every stage in order, the same bytes each time, complete up to a stage that fails."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jaxrank import bundle as files
from jaxrank.cli import app
from jaxrank.errors import BundleError, DestinationError
from mlir_pipeline.compile import compile_bundle
from mlir_pipeline.dump import IrDump
from mlir_pipeline.errors import CompileError


def _stages(directory: Path) -> list[str]:
    return [p.name for p in sorted(directory.iterdir())]


def test_stages_are_numbered_in_order_and_hold_no_weights(bundle: Path, tmp_path: Path) -> None:
    command = ["compile", str(bundle), "--target", "cpu", "--dump-ir", str(tmp_path / "ir")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    names = _stages(tmp_path / "ir")
    assert [int(n[:2]) for n in names] == list(range(len(names)))
    stages = [n[3:] for n in names]
    assert stages[0] == "traced.jaxpr.txt" and stages[-1] == "iree_input.mlir"
    expected = [
        "hoist_dots.jaxpr.txt",
        "request_tower.jaxpr.txt",
        "candidate_tower.jaxpr.txt",
        "stablehlo.mlir",
        "drop_shape_assertions.mlir",
        "externalize_weights.mlir",
        "legalize_dynamism.mlir",
    ]
    assert [n for n in stages if n in expected] == expected
    # The ranker has no sort and no custom call: what changes nothing writes nothing.
    assert not {"stable_sorts.jaxpr.txt", "refuse_custom_calls.mlir"} & set(stages)
    texts = [p.read_text() for p in (tmp_path / "ir").iterdir()]
    assert all(len(text) < 200_000 and not re.search(r"0x[0-9A-F]{64}", text) for text in texts)
    assert all(str(tmp_path) not in text and ".py" not in text for text in texts)
    assert "@attention_hidden" in (tmp_path / "ir" / names[0]).read_text()


def test_stages_are_the_same_from_run_to_run(bundle: Path, tmp_path: Path) -> None:
    for name in ("a", "b-ir"):
        compile_bundle(bundle, ["cpu"], dump_ir=tmp_path / name)
    first, second = tmp_path / "a", tmp_path / "b-ir"
    assert _stages(first) == _stages(second)
    for name in _stages(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("full", "full is not empty; give --dump-ir a new directory"),
        ("full/x", "x is not a directory; give --dump-ir a new directory"),
        ("b/ir", "is inside of the bundle .*, which the compiled one replaces"),
    ],
)
def test_a_place_that_is_refused(bundle: Path, tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(CompileError, match=message):
        compile_bundle(bundle, ["cpu"], dump_ir=tmp_path / place)
    files.verify(bundle)
    assert not (bundle / "ir").exists()


def test_a_stage_that_cannot_be_written(tmp_path: Path) -> None:
    """A command line ends with the message and exit code 2."""
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError, match="00_stage cannot be written: .*another place"):
        IrDump(tmp_path / "file" / "ir").write("stage", "text")


def test_what_is_refused_before_the_first_stage_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        compile_bundle(tmp_path / "nothing", ["cpu"], dump_ir=tmp_path / "ir")
    assert list(tmp_path.iterdir()) == []


def test_an_op_without_lowering(bundle: Path, tmp_path: Path) -> None:
    """The click head takes a Cholesky factor of every candidate, which JAX gives to LAPACK."""
    source = (bundle / files.MODEL).read_text()
    head = "self.click_head = nnx.Linear("
    assert head in source
    (bundle / files.MODEL).write_text(
        source.replace(head, "self.click_head = Factor(").replace(
            "class Ranker(",
            "class Factor(nnx.Linear):\n"
            "    def __call__(self, x):\n"
            "        return super().__call__(x) * jax.lax.linalg.cholesky(jnp.eye(2) * (1 + x[0, 0] ** "
            "2))[0, 0]\n\n\n"
            "class Ranker(",
        )
    )
    files.write_manifest(bundle, files.read_manifest(bundle))
    before = files.read_manifest(bundle)
    found = (
        r"operations? cannot be compiled:\n- stablehlo.custom_call @lapack_spotrf_ffi in module "
        r"click_head: it calls "
        r"'lapack_spotrf_ffi', code that is not part of the module; write the layer with jax.numpy"
    )
    with pytest.raises(CompileError, match=found):
        compile_bundle(bundle, ["cpu"], dump_ir=tmp_path / "ir")
    assert files.verify(bundle) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "ir"]  # no partial output
    stages = [n[3:] for n in _stages(tmp_path / "ir")]
    assert stages[0] == "traced.jaxpr.txt"
    assert stages[-2:] == ["refuse_custom_calls.mlir", "legalize_dynamism.mlir"]
