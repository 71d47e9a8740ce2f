"""CPU targets side by side in one bundle: what each may use, and which of them a machine runs."""

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from jaxrank import bundle as files
from jaxrank.cpu import LEVELS, instruction_sets
from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest
from jaxrank.targets import choose_target
from mlir_pipeline.compile import compile_bundle
from serving.model import Model
from tests import models
from tests.shared import Once

TARGETS = ["cpu:x86-64-v2", "cpu:x86-64-v3", "cpu"]


@pytest.fixture(scope="module")
def bundle(ranker_bundle: Path, once: Once) -> Path:
    """The ranker for two levels and this machine's CPU."""

    def build(directory: Path) -> None:
        shutil.copytree(ranker_bundle, directory / "b")
        compile_bundle(directory / "b", TARGETS)

    return once("targets", build) / "b"


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return files.verify(bundle)


def test_all_variants_are_within_tolerance_and_share_weights(bundle: Path, manifest: Manifest) -> None:
    compiled = {t.name: t for t in manifest.targets}
    for name in TARGETS:
        if set(compiled[name].instruction_sets) <= instruction_sets():
            certificate = compiled[name].certificate
            assert certificate is not None and certificate.max_abs_error <= 1e-5
    assert [p.name for p in bundle.rglob("*.irpa")] == [files.WEIGHTS]
    modules = [(bundle / compiled[name].module).read_bytes() for name in TARGETS]
    assert len(set(modules)) == len(TARGETS)


def test_levels_record_their_definition(manifest: Manifest) -> None:
    compiled = {t.name: t for t in manifest.targets}
    for level in ("x86-64-v2", "x86-64-v3"):
        assert set(compiled[f"cpu:{level}"].instruction_sets) == LEVELS[level]
    assert set(compiled["cpu"].instruction_sets) == instruction_sets()


def test_levels_contain_the_lower_ones() -> None:
    v2, v3, v4 = LEVELS.values()
    assert v2 < v3 < v4


@pytest.mark.parametrize(
    ("available", "chosen"),
    [
        (LEVELS["x86-64-v2"], "cpu:x86-64-v2"),
        (LEVELS["x86-64-v3"] - {"fma"}, "cpu:x86-64-v2"),
        (LEVELS["x86-64-v3"], "cpu:x86-64-v3"),
        (LEVELS["x86-64-v4"] | {"amx_tile"}, "cpu:x86-64-v3"),
    ],
)
def test_another_machine_runs_the_highest_level_that_it_has(
    bundle: Path, manifest: Manifest, available: frozenset[str], chosen: str
) -> None:
    """The host's module needs something that no such machine has."""
    targets = tuple(
        replace(t, instruction_sets=("avx512_fp16",)) if t.name == "cpu" else t for t in manifest.targets
    )
    other = replace(manifest, targets=targets)
    assert choose_target(bundle, other, "cpu", available).name == chosen


def test_this_machine_runs_its_own(
    bundle: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="jaxrank"):
        model = Model.load(bundle)
    model.close()
    assert model.target is not None and model.target.name == "cpu"
    assert "runs its target cpu with the engine iree" in caplog.text


def test_a_level_that_is_asked_for(bundle: Path, ranker_saved_model: Path) -> None:
    request = models.ranker_request(77, 5)
    model = Model.load(bundle, target="cpu:x86-64-v2")
    found = model.predict(request)
    model.close()
    for name, expected in models.tensorflow_outputs(ranker_saved_model, request).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_a_cpu_for_which_there_is_no_module(bundle: Path, manifest: Manifest) -> None:
    available = LEVELS["x86-64-v2"] - {"popcnt"}
    with pytest.raises(BundleError, match="no module for this CPU") as error:
        choose_target(bundle, manifest, "cpu", available)
    for name, lacks in (("cpu:x86-64-v2", "popcnt"), ("cpu:x86-64-v3", "abm, avx, avx2, .*popcnt")):
        error.match(f"{name} was compiled for a CPU with {lacks}")
    with pytest.raises(BundleError, match="x86-64-v3 was compiled for a CPU with abm, avx"):
        choose_target(bundle, manifest, "cpu:x86-64-v3", LEVELS["x86-64-v2"])


def test_a_target_that_the_bundle_does_not_have(bundle: Path, manifest: Manifest) -> None:
    with pytest.raises(
        BundleError,
        match=r"not compiled for 'cpu:x86-64-v4' \(it has: cpu with iree, cpu:x86-64-v2 with iree",
    ):
        choose_target(bundle, manifest, "cpu:x86-64-v4")
    without = replace(manifest, targets=tuple(t for t in manifest.targets if "cpu" not in t.name))
    with pytest.raises(BundleError, match="not compiled for 'cpu' .it has: cuda:sm_80 with iree, vulkan"):
        choose_target(bundle, without, "cpu")


@pytest.mark.parametrize(("version", "age"), [(2, "older"), (99, "newer")])
def test_a_bundle_of_another_schema(bundle: Path, tmp_path: Path, version: int, age: str) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    path = tmp_path / "b" / files.MANIFEST
    path.write_bytes(
        re.sub(rb'"schema_version": \d+', f'"schema_version": {version}'.encode(), path.read_bytes(), count=1)
    )
    with pytest.raises(BundleError, match=f"from an? {age} jaxrank.*convert the model and compile it again"):
        Model.load(tmp_path / "b")
