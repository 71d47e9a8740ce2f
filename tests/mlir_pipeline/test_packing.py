"""Weights that are packed when a module is compiled, once for all that load it."""

from pathlib import Path

import numpy as np
import pytest
from iree.runtime import save_archive_file

from jaxrank.bundle import packed_weights
from mlir_pipeline import iree as compiling
from mlir_pipeline.errors import CompileError
from mlir_pipeline.iree import compile_module, move_module, parse_target, remove_module
from serving.engines.streams import Stream, Weights

MODULE = """module {
  util.global private @w = #flow.parameter.named<"model"::"w"> : tensor<512x300xf32>
  func.func public @candidate_tower(%x: tensor<?x512xf32>) -> tensor<?x300xf32> {
    %w = util.global.load @w : tensor<512x300xf32>
    %y = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
        : (tensor<?x512xf32>, tensor<512x300xf32>) -> tensor<?x300xf32>
    return %y : tensor<?x300xf32>
  }
}"""
CPU = parse_target("cpu").with_data_tiling()
WEIGHT = np.random.default_rng(0).standard_normal((512, 300), np.float32)
ROWS = np.random.default_rng(1).standard_normal((70, 512), np.float32)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_archive_file({"w": WEIGHT}, tmp_path / "weights.irpa")
    return tmp_path / "weights.irpa"


def _scores(module: Path, weights: Path) -> np.ndarray:
    stream = Stream(CPU.driver, Weights(weights))
    stream.load(module, ["candidate_tower"])
    return stream.call("candidate_tower", [ROWS])[0]


def test_the_same_bits_with_weights_that_were_packed_before(tmp_path: Path, weights: Path) -> None:
    plain, packed = tmp_path / "plain.vmfb", tmp_path / "packed.vmfb"
    compile_module(MODULE, CPU, plain)
    compile_module(MODULE, CPU, packed, weights)
    assert {p.name for p in tmp_path.iterdir()} == {
        "weights.irpa",
        "plain.vmfb",
        "packed.vmfb",
        "packed.irpa",
    }
    # Tiles of 16 columns: 304 of them.
    assert packed_weights(packed).stat().st_size >= 512 * 304 * 4
    np.testing.assert_array_equal(_scores(packed, weights), _scores(plain, weights))
    np.testing.assert_allclose(_scores(packed, weights), ROWS @ WEIGHT, atol=1e-3)  # sums of 512 products


def test_a_module_and_its_archive_stay_together(tmp_path: Path, weights: Path) -> None:
    first, second = tmp_path / "first.vmfb", tmp_path / "second.vmfb"
    compile_module(MODULE, CPU, first, weights)
    expected = _scores(first, weights)
    move_module(first, second)
    np.testing.assert_array_equal(_scores(second, weights), expected)
    packed_weights(second).unlink()
    with pytest.raises(ValueError, match="packed"):
        _scores(second, weights)
    compile_module(MODULE, CPU, second, weights)
    compile_module(MODULE, CPU, first)
    move_module(first, second)
    assert not packed_weights(second).exists()
    np.testing.assert_array_equal(_scores(second, weights), expected)
    remove_module(second)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.irpa"]


def test_an_archive_that_another_took_the_place_of(tmp_path: Path, weights: Path) -> None:
    """Loaded by what had loaded the one before, as the compiler's stopwatch does."""
    small = MODULE.replace("300", "100")
    save_archive_file({"w": WEIGHT[:, :100].copy()}, tmp_path / "small.irpa")
    compile_module(small, CPU, tmp_path / "m.vmfb", tmp_path / "small.irpa")
    loaded = Weights(weights)
    assert loaded.of(tmp_path / "m.vmfb")
    compile_module(MODULE, CPU, tmp_path / "other.vmfb", weights)
    move_module(tmp_path / "other.vmfb", tmp_path / "m.vmfb")
    stream = Stream(CPU.driver, loaded)
    stream.load(tmp_path / "m.vmfb", ["candidate_tower"])
    np.testing.assert_array_equal(
        stream.call("candidate_tower", [ROWS])[0], _scores(tmp_path / "m.vmfb", weights)
    )


def test_a_cpu_that_cannot_run_it_packs_nothing(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "instruction_sets", lambda: frozenset[str]())
    compile_module(MODULE, CPU, tmp_path / "m.vmfb", weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.vmfb", "weights.irpa"]


def test_weights_that_are_not_there_name_the_module(tmp_path: Path) -> None:
    save_archive_file({"another": WEIGHT}, tmp_path / "weights.irpa")
    with pytest.raises(CompileError, match=r"the weights of m\.vmfb cannot be packed: .*w"):
        compile_module(MODULE, CPU, tmp_path / "m.vmfb", tmp_path / "weights.irpa")
    assert not packed_weights(tmp_path / "m.vmfb").exists()
