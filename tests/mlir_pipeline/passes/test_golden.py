# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Golden tests: each file of `golden/` names a pass and says, in FileCheck's language, what comes out of
it."""

import re
from pathlib import Path

import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts
from iree.compiler import ir

from mlir_pipeline.dump import IrDump
from mlir_pipeline.passes.program import Program
from mlir_pipeline.passes.run import PASSES, run_passes

GOLDEN = Path(__file__).parent / "golden"
BY_NAME = {step.name: step for step in PASSES}


def _after(path: Path) -> str:
    source = path.read_text()
    (name,) = re.findall(r"^// PASS: (\S+)$", source, re.M)
    program = Program(ir.Module.parse(source, ir.Context()))
    before = program.text()
    run_passes(program, [BY_NAME[name]], IrDump(None))
    assert program.text() != before
    return program.text()


def _filecheck(checks: Path, text: str) -> int:
    """FileCheck's exit status."""
    options = Options(match_filename=str(checks))
    with checks.open() as file:
        parser = Parser(options, file, *pattern_for_opts(options))
        return Matcher(options, FInput("pass", text), parser).run()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.mlir")), ids=lambda p: p.stem)
def test_golden(path: Path) -> None:
    assert _filecheck(path, _after(path)) == 0


def test_the_checks_can_fail() -> None:
    path = GOLDEN / "remove_dead_code.mlir"
    assert _filecheck(path, str(ir.Module.parse(path.read_text(), ir.Context()))) != 0


def test_every_pass_that_changes_a_program_has_a_golden_file() -> None:
    covered = set(re.findall(r"^// PASS: (\S+)$", "\n".join(p.read_text() for p in GOLDEN.glob("*")), re.M))
    assert covered == set(BY_NAME) - {"verify-supported"}


def test_passes_say_what_they_require_and_ensure() -> None:
    assert len(BY_NAME) == len(PASSES)
    assert all(step.requires and step.ensures for step in PASSES)
