"""Lower precision in real bundles: compiled, run by the server's engine, held to bounds, refused."""

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxrank import bundle as files
from jaxrank.certificate import CertificateError, load_examples
from jaxrank.cli import app
from jaxrank.cli.precision import read_search
from jaxrank.flax_module import dense_outputs
from jaxrank.manifest import PrecisionFormat, PrecisionRule
from mlir_pipeline.compile import compile_bundle
from mlir_pipeline.errors import CompileError
from mlir_pipeline.precision.bounds import parse_bounds
from mlir_pipeline.precision.cast import modules_of, products
from mlir_pipeline.precision.choice import Precision
from mlir_pipeline.precision.emulate import Emulator
from mlir_pipeline.precision.rules import parse_rules
from mlir_pipeline.rewriting import flat_module, rewritten
from serving.model import Model
from tests import models

Requests = Callable[[int, int], dict[str, np.ndarray]]


@pytest.fixture
def bundle(ranker_bundle: Path, tmp_path: Path) -> Path:
    """The ranker, compiled for nothing yet."""
    shutil.copytree(ranker_bundle, tmp_path / "b")
    manifest = files.read_manifest(tmp_path / "b")
    files.write_manifest(tmp_path / "b", msgspec.structs.replace(manifest, targets=()))
    return tmp_path / "b"


@pytest.fixture
def example_file(tmp_path: Path, ranker_requests: Requests) -> Path:
    """Two recorded requests with labels of the click."""
    rng = np.random.default_rng(0)
    arrays = {}
    for i, rows in enumerate((30, 12)):
        arrays.update({f"{i}/{k}": v for k, v in models.as_npz(ranker_requests(rows, i)).items()})
        arrays[f"{i}/labels/click"] = rng.random((rows, 1)) < 0.3
    path = tmp_path / "recorded" / "requests.npz"
    path.parent.mkdir()
    np.savez(path, **arrays)
    return path


def _rules(*texts: str, keep: str = "abs:0.1") -> Precision:
    return Precision(parse_rules(texts), parse_bounds(keep))


# Of the four, so that each type and each way is there.
@pytest.mark.parametrize("chosen", ["bf16", "f16_storage"])
def test_compiled_scores_are_those_of_the_emulation(
    bundle: Path, ranker_requests: Requests, chosen: PrecisionFormat
) -> None:
    """Sums in another order move an activation across a boundary of the small type now and then: scores up to
    2 then move by about its last place, 2^-10 (f16) or 2^-7 (bf16). Where IREE fuses a cast with what makes
    its operand it may drop the activations' rounding (the mlp's, in bf16). So the scores are nearly those of
    one emulation, in which some modules round their weights only.

    Nothing is said of how far they are from float32: roundings have signs and cancel, so one rounding less
    brings some scores nearer and takes others further away, and which of the two prevails depends on the
    weights. `test_one_rounding_less_can_be_further_from_float32` has the numbers."""
    flat = rewritten(flat_module(bundle))
    manifest = compile_bundle(bundle, ["cpu", "cuda:sm_80"], precision=_rules(chosen))
    assert manifest.precision == (PrecisionRule(pattern="*", format=chosen),)
    modules = modules_of(products(flat))
    emulator = Emulator(flat, modules, row_wise=manifest.row_wise)
    names = dense_outputs(manifest, files.read_host_program(bundle))
    model = Model.load(bundle)
    fused = {chosen} if chosen.endswith("_storage") else {chosen, f"{chosen}_storage"}
    emulations = [dict(zip(modules, f, strict=True)) for f in product(fused, repeat=len(modules))]
    nearest: list[list[float]] = [[] for _ in emulations]
    errors, moved, rounded_fully = [], [], []
    for seed, rows in enumerate((1, 5, 60, 60, 60, 60, 300)):
        request = ranker_requests(rows, seed)
        blocks = model._host.run(request)
        found = model.predict(request)
        emulated = emulator(dict.fromkeys(modules, chosen), blocks.request, blocks.candidate)
        plain = emulator({}, blocks.request, blocks.candidate)
        for name, expected, float32 in zip(names, emulated, plain, strict=True):
            errors.extend(np.abs(found[name] - expected).ravel())
            moved.extend(np.abs(found[name] - float32).ravel())
            rounded_fully.extend(np.abs(expected - float32).ravel())
        for formats, off in zip(emulations, nearest, strict=True):
            for name, value in zip(names, emulator(formats, blocks.request, blocks.candidate), strict=True):
                off.extend(np.abs(found[name] - value).ravel())
    model.close()
    assert max(errors) <= {"f16": 2e-3, "bf16": 1.6e-2}.get(chosen, 2e-6)
    assert np.median(moved) > 1e-5  # it is lower precision
    # and one that was emulated: by far nearer to it than the precision moves scores.
    assert min(np.median(off) for off in nearest) < 0.25 * np.median(rounded_fully)


def test_one_rounding_less_can_be_further_from_float32(
    ranker_bundle: Path, ranker_requests: Requests
) -> None:
    """Of the emulations themselves, in which it is certain which roundings are made: without those of the
    mlp's activations, most of many scores are nearer to float32, and some are further by more than float32's
    own rounding."""
    flat = rewritten(flat_module(ranker_bundle))
    modules = modules_of(products(flat))
    emulator = Emulator(flat, modules, row_wise=True)
    model = Model.load(ranker_bundle)
    fewer, every = [], []
    formats: dict[str, PrecisionFormat] = dict.fromkeys(modules, "bf16")
    for seed in range(4):
        blocks = model._host.run(ranker_requests(60, seed))
        inputs = blocks.request, blocks.candidate
        outputs = zip(
            emulator({}, *inputs),
            emulator(formats, *inputs),
            emulator({**formats, "mlp": "bf16_storage"}, *inputs),
            strict=True,
        )
        for plain, rounded, partly in outputs:
            every.extend(np.abs(rounded - plain).ravel())
            fewer.extend(np.abs(partly - plain).ravel())
    model.close()
    further = np.mean(np.array(fewer) > np.array(every) + 1e-5)
    assert 0.05 < further < 0.5
    assert np.mean(fewer) < np.mean(every)


def test_the_certificate_shows_what_moved_and_the_manifest_what_was_kept(bundle: Path) -> None:
    manifest = compile_bundle(bundle, ["cpu"], precision=_rules("bf16", keep="abs:1e-2,top10:0.5"))
    certificate = manifest.targets[0].certificate
    assert certificate is not None and 1e-5 < certificate.max_abs_error <= 1e-2
    kept = {k.metric: k for k in manifest.kept}
    assert kept["abs"].value == pytest.approx(certificate.max_abs_error, rel=1e-3)
    assert kept["abs"].bound == 1e-2 and 0.5 <= kept["top10"].value <= 1
    shown = CliRunner().invoke(app, ["inspect", str(bundle)]).output
    assert "Precision" in shown and "bf16" in shown
    # The conversion's certificate is float32's; the program's is held to the bounds.
    headings = [line for line in shown.splitlines() if line.startswith("Certificate: ")]
    assert ["flax" in h for h in headings] == [True, False]
    assert headings[0].rstrip().endswith("tolerance 1e-05")
    assert headings[1].rstrip().endswith("bounds abs:0.01,top10:0.5")


def test_precision_stays_until_it_is_changed_and_then_for_every_target(bundle: Path) -> None:
    compile_bundle(bundle, ["cpu"], precision=_rules("mlp=f16"))
    manifest = compile_bundle(bundle, ["cuda:sm_80"])
    assert [r.pattern for r in manifest.precision] == ["mlp"]
    before = {t.name: files.sha256(bundle / t.module) for t in manifest.targets}
    manifest = compile_bundle(bundle, ["cpu"], precision=Precision(parse_rules(["f32"])))
    assert manifest.precision == () and manifest.kept == ()
    assert manifest.targets[0].certificate is not None
    assert manifest.targets[0].certificate.max_abs_error <= 1e-5
    # The weights are one file: cuda's module was compiled again.
    assert set(before) == {t.name for t in manifest.targets}
    assert all(files.sha256(bundle / t.module) != before[t.name] for t in manifest.targets)


@pytest.mark.parametrize(
    ("precision", "target", "error", "message"),
    [
        (_rules("towr=f16"), "cpu", CompileError, "no module .* matches 'towr'; there are: "),
        (Precision(parse_rules(["bf16"])), "cpu", CertificateError, "Say with --keep what you accept"),
        (
            _rules("bf16", keep="abs:1e-6"),
            "cpu",
            CertificateError,
            r"breaks what --keep asks for: abs .*broken",
        ),
        (Precision(None, parse_bounds("abs:0")), "cpu", CompileError, "float32 itself does not keep"),
        (
            _rules("bf16"),
            "cuda:sm_75",
            CompileError,
            "sm_75 cannot be compiled with .*takes f32, f16_storage",
        ),
        (_rules("f16"), "vulkan", CompileError, r"vulkan cannot be compiled with \*=f16: it takes f32;"),
    ],
)
def test_what_is_refused_leaves_the_bundle_as_it_was(
    bundle: Path, precision: Precision, target: str, error: type[Exception], message: str
) -> None:
    before = files.read_manifest(bundle)
    with pytest.raises(error, match=message):
        compile_bundle(bundle, [target], precision=precision)
    assert files.verify(bundle) == before


def test_auto_for_bytes_stays_within_the_bounds_of_recorded_requests(
    bundle: Path, example_file: Path
) -> None:
    keep = "auc:1e-2,gauc:1e-2,top10:0.9,abs:2e-3"
    arguments = ["compile", str(bundle), "--precision", "auto", "--prefer", "bytes", "--keep", keep]
    result = CliRunner().invoke(app, [*arguments, "--examples", str(example_file)])
    assert result.exit_code == 0, result.output
    assert (
        f"bounds {keep.replace('1e-2', '0.01').replace('2e-3', '0.002')} on the requests of" in result.output
    )
    manifest, search = files.verify(bundle), read_search(bundle)
    assert search is not None and search.labels == "recorded" and search.requests == 2
    assert {files.PRECISION_JSON, files.PRECISION_PLOT, files.PRECISION_EXAMPLES} <= manifest.files.keys()
    assert manifest.precision and all(
        k.value >= k.bound if k.metric == "top10" else k.value <= k.bound for k in manifest.kept
    )
    assert set(search.program_milliseconds) == {"f32", "chosen"}
    assert (bundle / files.PRECISION_PLOT).read_text().lstrip().startswith("<?xml")
    examples = load_examples(bundle, files.PRECISION_EXAMPLES)
    model = Model.load(bundle)
    errors = [np.abs(model.predict(e.features)[n] - v).max() for e in examples for n, v in e.outputs.items()]
    model.close()
    assert 0 < max(errors) <= 2e-3
    # The bounds and their requests stay with the bundle.
    assert {k.metric for k in compile_bundle(bundle, ["cuda:sm_80"]).kept} == {
        k.metric for k in manifest.kept
    }


def test_auto_for_time_chooses_nothing_that_is_not_faster(bundle: Path) -> None:
    manifest = compile_bundle(bundle, ["cpu"], precision=Precision(None, parse_bounds("abs:1e-2")))
    search = read_search(bundle)
    assert search is not None and search.labels.startswith("the best tenth")
    faster = search.program_milliseconds and (
        search.program_milliseconds["chosen"] < search.program_milliseconds["f32"]
    )
    assert bool(manifest.precision) <= bool(faster)
    assert manifest.precision or "stay in float32" in search.note


def test_auto_for_a_gpu_that_is_not_here_is_an_estimate(bundle: Path) -> None:
    manifest = compile_bundle(bundle, ["cuda:sm_75"], precision=Precision(None, parse_bounds("abs:1e-2")))
    search = read_search(bundle)
    assert search is not None and search.estimated and search.program_milliseconds == {}
    # IREE's products of 16-bit operands need sm_80.
    assert manifest.precision and all(r.format.endswith("_storage") for r in manifest.precision)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "abs:1"], "give --precision too"),
        (["--precision", "f16", "--prefer", "bytes"], "about what --precision auto saves"),
        (["--precision", "f16", "--precision", "auto"], "chooses for every module"),
        (["--precision", "auto", "--keep", "mrr:1"], "there is no metric 'mrr'; metrics are"),
        (["--precision", "f16", "--examples", "x.npz"], "give --keep too"),
        (["--precision", "auto", "--examples", "x.npz"], "x.npz is not a file of example requests"),
    ],
)
def test_options_that_do_not_go_together(bundle: Path, options: list[str], message: str) -> None:
    before = files.read_manifest(bundle)
    result = CliRunner().invoke(app, ["compile", str(bundle), *options])
    assert result.exit_code == 2 and message in result.output
    assert files.verify(bundle) == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0/labels/clicks", np.ones((30, 1)), "labels the output 'clicks'; outputs are: click"),
        ("0/labels/click", np.full((30, 1), 2), "labels other than 0 and 1"),
        ("0/labels/click", np.ones((29, 1)), "has 29 rows, its request has 30"),
        ("7/labels/click", np.ones((29, 1)), "labels of the requests 7, but no inputs"),
        ("0/user_mood", np.ones((1, 1)), "disagree on: user_mood"),
    ],
)
def test_examples_that_do_not_fit(
    bundle: Path, example_file: Path, name: str, value: np.ndarray, message: str
) -> None:
    with np.load(example_file) as stored:
        np.savez(example_file, **{**stored, name: value})
    command = ["compile", str(bundle), "--precision", "auto", "--examples", str(example_file)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and message in result.output
