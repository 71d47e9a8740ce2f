"""`explain` on real bundles: its counts agree with the manifest and the compiled module, and the profile is
run."""

import importlib.util
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from mlir_pipeline.explain.explanation import ExplainError, Explanation, explain
from mlir_pipeline.explain.plot import draw
from mlir_pipeline.rewriting import MERGES, REWRITES
from tests.shared import Once
from tests.zoo import ZOO
from tests.zoo.converted import convert_once


@pytest.fixture(scope="module")
def explanation(ranker_bundle: Path) -> Explanation:
    return explain(ranker_bundle, profiled=(50, 200), runs=5)


def _change(bundle: Path, **fields: object) -> None:
    manifest = msgspec.structs.replace(files.read_manifest(bundle), **fields)
    files.write_manifest(bundle, manifest)


def _zoo_bundle(name: str, once: Once) -> Path:
    (model,) = (m for m in ZOO if m.name == name)
    return convert_once(model, once).bundle


def test_work_agrees_with_the_manifest(ranker_bundle: Path, explanation: Explanation) -> None:
    """The converter and the compiler count products on their own ways."""
    flops = files.read_manifest(ranker_bundle).flops
    assert flops is not None
    assert [w.candidates for w in explanation.work] == [1, 50, 200, 1000, 5000]
    for work in explanation.work:
        n = work.candidates
        assert work.source.product_flops == n * flops.source_per_candidate
        assert work.request.product_flops == flops.request
        assert work.compiled.product_flops == flops.request + n * flops.candidate
        assert work.source.least_bytes <= work.source.bytes_moved
        assert work.compiled.flops >= work.compiled.product_flops
    assert explanation.notes == ()


def test_steps_lead_from_the_source_to_what_is_compiled(explanation: Explanation) -> None:
    assert [s.name for s in explanation.rewrites][1:] == [r.__name__ for r in REWRITES + MERGES]
    (work,) = (w for w in explanation.work if w.candidates == explanation.reference_candidates)
    last = explanation.rewrites[-1]
    assert last.request_flops + last.candidate_flops == work.compiled.flops
    product = 1.0
    for step in explanation.rewrites:
        product *= 1 + step.flops_change
    assert product == pytest.approx(work.compiled.flops / work.source.flops)
    assert last.state_bytes == sum(s.bytes for s in explanation.state) > 0
    assert sum(m.share for m in explanation.modules) == pytest.approx(1)


def test_hoisting_has_its_share_of_target_attention(once: Once) -> None:
    found = explain(_zoo_bundle("din", once), candidates=(1000,), profiled=())
    shares = {s.name: s.flops_change for s in found.rewrites}
    assert shares["hoist_dots"] < -0.4
    assert found.target == "" and found.dispatches["candidate_tower"] > 0
    assert any("not compiled" in m.why for m in found.not_measured)


def test_a_model_that_mixes_candidates_is_a_polynomial(once: Once) -> None:
    found = explain(_zoo_bundle("listwise_reranker", once), candidates=(1, 100, 1000), profiled=())
    assert not found.row_wise and "n^2" in found.flops_of_n["candidate"]
    one, _, many = found.work
    assert many.compiled.flops > 1000 * one.compiled.flops
    assert many.source.flops >= many.compiled.flops


def test_dispatches_are_those_of_the_compiled_module(ranker_bundle: Path, explanation: Explanation) -> None:
    """Counted in the disassembly of the module that serves."""
    package = importlib.util.find_spec("iree._runtime_libs")
    assert package is not None and package.submodule_search_locations
    tool = Path(package.submodule_search_locations[0]) / "iree-dump-module"
    module = ranker_bundle / "cpu" / "iree" / "dense.vmfb"
    done = subprocess.run([tool, "--output=disassembly", module], capture_output=True, text=True, check=True)
    calls = len(re.findall(r"vm\.call\S* @hal\.command_buffer\.dispatch", done.stdout))
    assert sum(explanation.dispatches.values()) == calls > 2


def test_the_profile_is_run(explanation: Explanation) -> None:
    """Every dispatch that forms is timed, as often as it is called, and known by its modules."""
    assert [(p.function, p.candidates) for p in explanation.profiles] == [
        ("request_tower", 1), ("candidate_tower", 50), ("candidate_tower", 200),
    ]  # fmt: skip
    for profile in explanation.profiles:
        assert profile.runs == 5
        assert sum(d.calls for d in profile.dispatches) == explanation.dispatches[profile.function]
        assert profile.dispatch_microseconds > 0
        assert sum(d.share for d in profile.dispatches) == pytest.approx(1)
        assert any("dot_general" in d.primitives for d in profile.dispatches)
    paths = {m.path for m in explanation.modules}
    timed = {m for p in explanation.profiles for d in p.dispatches for m in d.modules}
    assert timed <= paths and len(timed) > 3


def test_every_engine_target_is_counted(ranker_bundle: Path) -> None:
    """A GPU's dispatches form without the GPU; its time is not made up."""
    found = explain(ranker_bundle, target="cuda:sm_80", candidates=(10,), profiled=(10,), runs=2)
    assert found.dispatches["candidate_tower"] > 0
    if not found.profiles:
        (missing,) = found.not_measured
        assert missing.name == "time of each dispatch" and "CUDA" in missing.why


def test_json_holds_every_figure(explanation: Explanation) -> None:
    assert msgspec.json.decode(explanation.to_json(), type=Explanation) == explanation


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_picture(explanation: Explanation, tmp_path: Path, suffix: str) -> None:
    draw(explanation, tmp_path / f"p{suffix}")
    written = (tmp_path / f"p{suffix}").read_bytes()
    assert written.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert len(written) > 10_000


def test_a_picture_without_times(ranker_bundle: Path, tmp_path: Path) -> None:
    draw(explain(ranker_bundle, candidates=(9,), profiled=()), tmp_path / "p.svg")
    assert (tmp_path / "p.svg").stat().st_size > 10_000


def test_an_engine_that_iree_does_not_run(bundle: Path) -> None:
    """Work is shown all the same."""
    targets = files.read_manifest(bundle).targets
    _change(bundle, targets=(msgspec.structs.replace(targets[0], engine="onnxruntime"),))
    found = explain(bundle, candidates=(10,), profiled=(10,))
    assert found.work[0].compiled.flops > 0 and not found.profiles
    assert [m.name for m in found.not_measured] == ["dispatches", "time of each dispatch"]
    assert all("onnxruntime" in m.why for m in found.not_measured)


def test_a_cpu_that_lacks_instructions(bundle: Path) -> None:
    targets = files.read_manifest(bundle).targets
    _change(bundle, targets=(msgspec.structs.replace(targets[0], instruction_sets=("avx9000",)),))
    (missing,) = explain(bundle, candidates=(10,), profiled=(10,)).not_measured
    assert "avx9000" in missing.why


def test_a_bundle_of_another_version_is_told(bundle: Path) -> None:
    flops = files.read_manifest(bundle).flops
    assert flops is not None
    _change(bundle, flops=msgspec.structs.replace(flops, candidate=flops.candidate + 2))
    assert any("other rewrites" in note for note in explain(bundle, profiled=()).notes)


def test_what_is_refused(bundle: Path) -> None:
    with pytest.raises(ExplainError, match="not compiled for 'tpu'.*it has: cpu"):
        explain(bundle, target="tpu")
    with pytest.raises(ExplainError, match="5001 candidates are outside of .* 1 to 5,000"):
        explain(bundle, candidates=(5001,))
    with pytest.raises(ExplainError, match="0 candidates"):
        explain(bundle, profiled=(0,))
    (bundle / files.PARAMS).write_bytes(b"x")
    with pytest.raises(BundleError, match="params.safetensors is damaged"):
        explain(bundle)
    with pytest.raises(BundleError, match="does not exist"):
        explain(bundle.parent / "none")
