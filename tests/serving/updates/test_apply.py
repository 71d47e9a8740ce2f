"""`jaxrank tables delta` and `apply` on tables and bundles: what they do, refuse, and survive."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.updates_kills import apply_with_kills
from jaxrank import bundle as files
from jaxrank.cli import app
from serving.tables import RowFormat, Table, TableWriter, open_table
from tests.serving.updates.conftest import KEYS, WriteModel


def _run(*arguments: object) -> str:
    """What the command says. Raises `RuntimeError` with it when it fails."""
    done = CliRunner().invoke(app, ["tables", *map(str, arguments)])
    if done.exit_code:
        raise RuntimeError(f"{done.exit_code}: {done.output}")
    return " ".join(done.output.split())


def _write(path: Path, rows: np.ndarray, keys: np.ndarray | None = None, format: RowFormat = "f32") -> Table:
    with TableWriter(path, rows.shape[1], format, keys is not None, "error" if keys is None else "mean") as w:
        w.append(rows, keys)
    return open_table(path)


def _rows(table: Table, ids: np.ndarray) -> np.ndarray:
    out = np.empty((len(ids), table.dim), np.float32)
    table.lookup(ids, out)
    return out


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """`t0.table` up to `t3.table`, each trained further, and `1.delta` up to `3.delta` between them."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 8), np.float32)
    _write(tmp_path / "t0.table", rows)
    for step in (1, 2, 3):
        rows = rows.copy()
        rows[rng.choice(500, 40, replace=False)] += 1
        _write(tmp_path / f"t{step}.table", rows)
        after = [] if step == 1 else ["--after", tmp_path / f"{step - 1}.delta"]
        old, new = tmp_path / f"t{step - 1}.table", tmp_path / f"t{step}.table"
        said = _run("delta", old, new, "-o", tmp_path / f"{step}.delta", *after)
        assert "t0: 40 rows changed, 0 new, 0 deleted" in said
    return tmp_path


@pytest.mark.parametrize("format", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_keyed_table_becomes_the_new_one(tmp_path: Path, format: RowFormat, seed: int) -> None:
    """Rows that changed, came and went, in another order, with another mean row: the same bits as the new
    table's."""
    rng = np.random.default_rng(seed)
    keys = rng.choice(2**60, 900, replace=False) - 2**59
    rows = rng.standard_normal((900, 5), np.float32)
    old = _write(tmp_path / "t.table", rows[:700], keys[:700], format)
    order = rng.permutation(np.arange(100, 900))
    rows[300:350] += 1
    new = _write(tmp_path / "new.table", rows[order], keys[order], format)
    said = _run("delta", tmp_path / "t.table", tmp_path / "new.table", "-o", tmp_path / "d.delta")
    assert "50 rows changed, 200 new, 100 deleted" in said
    _run("apply", tmp_path / "d.delta", tmp_path / "t.table")
    found = open_table(tmp_path / "t.table")
    found.verify()
    wanted = np.concatenate([keys, [1]])
    np.testing.assert_array_equal(_rows(found, wanted), _rows(new, wanted))
    assert found.rows == new.rows and found.position.sequence == 1
    assert found.position.lineage == old.position.lineage


def test_deltas_apply_in_any_order_and_a_repeat_does_nothing(chain: Path) -> None:
    target = chain / "t0.table"
    assert "at sequence 3" in _run("apply", *(chain / f"{n}.delta" for n in (3, 1, 2)), target)
    before = target.read_bytes()
    assert "at sequence 3" in _run("apply", chain / "2.delta", target)
    assert target.read_bytes() == before
    ids = np.arange(500)
    np.testing.assert_array_equal(_rows(open_table(target), ids), _rows(open_table(chain / "t3.table"), ids))


def test_the_next_delta_can_be_made_from_the_applied_table(chain: Path) -> None:
    _run("apply", chain / "1.delta", chain / "t0.table")
    _run("delta", chain / "t0.table", chain / "t3.table", "-o", chain / "again.delta")
    assert "at sequence 2" in _run("apply", chain / "again.delta", chain / "t0.table")
    ids = np.arange(500)
    found = open_table(chain / "t0.table")
    np.testing.assert_array_equal(_rows(found, ids), _rows(open_table(chain / "t3.table"), ids))
    with pytest.raises(RuntimeError, match="got to 2 by another delta"):
        _run("apply", chain / "3.delta", chain / "t0.table")


def test_what_does_not_fit_is_refused_and_leaves_the_table_as_it_was(chain: Path) -> None:
    target = chain / "t0.table"
    before = target.read_bytes()
    with pytest.raises(RuntimeError, match="from sequence 1 to 2, table 't0' is at 0"):
        _run("apply", chain / "2.delta", target)
    with pytest.raises(RuntimeError, match="is for table 't0' of digest"):
        _run("apply", chain / "1.delta", chain / "t2.table")
    _write(chain / "wide.table", np.zeros((500, 9), np.float32))
    _write(chain / "keyed.table", np.zeros((500, 8), np.float32), np.arange(500))
    _write(chain / "half.table", np.zeros((500, 8), np.float32), format="f16")
    _write(chain / "more.table", np.zeros((501, 8), np.float32))
    for other in ("wide", "keyed", "half", "more"):
        with pytest.raises(RuntimeError, match="serve the new version"):
            _run("delta", target, chain / f"{other}.table", "-o", chain / "no.delta")
    with pytest.raises(RuntimeError, match="has rows"):
        _run("apply", chain / "1.delta", chain / "wide.table")
    assert target.read_bytes() == before
    assert not (chain / "no.delta").exists()
    assert not [p for p in chain.iterdir() if p.name.startswith(".")]


def test_damaged_deltas_are_refused(chain: Path) -> None:
    whole = (chain / "1.delta").read_bytes()
    before = (chain / "t0.table").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:size] for size in (0, 7, 8, 100, 4095, 4096, len(whole) - 1)] + [whole + b"\0"]
    for at in rng.integers(0, len(whole), 200):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for data in damaged:
        (chain / "bad.delta").write_bytes(data)
        with pytest.raises(RuntimeError, match="(Damaged|Version)"):
            _run("apply", chain / "bad.delta", chain / "t0.table")
    assert (chain / "t0.table").read_bytes() == before


def test_a_full_disk_leaves_nothing(chain: Path) -> None:
    """The limit of a file's size stands in for the disk's: writing fails with an OSError in the middle."""
    before = (chain / "t0.table").read_bytes()
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); from jaxrank.cli import app; app()"
    for arguments in (
        ("apply", chain / "1.delta", chain / "t0.table"),
        ("delta", chain / "t0.table", chain / "t1.table", "-o", chain / "new.delta"),
    ):
        command = [sys.executable, "-Bc", limited, "tables", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode and "TableWriteError" in done.stderr, done.stderr
    assert (chain / "t0.table").read_bytes() == before
    assert not [p for p in chain.iterdir() if p.name.startswith(".") or p.name == "new.delta"]


def _bundle_sequence(bundle: Path) -> int:
    """Of all tables; all files have their sha256, and all tables their checksums."""
    manifest = files.verify(bundle)
    sequences = set()
    for entry in manifest.tables:
        table = open_table(bundle / entry.file)
        table.verify()
        ids = np.arange(table.rows) if table.keys is None else KEYS
        sequences |= {table.position.sequence, *_rows(table, ids).ravel().tolist()}
    assert len(sequences) == 1
    return int(sequences.pop())


def test_a_killed_apply_leaves_a_bundle_at_one_sequence(write_model: WriteModel, tmp_path: Path) -> None:
    """The rows of epoch n are n: all tables, the sequence numbers and the rows agree after every kill."""
    count, kills = 10, 3
    for epoch in range(count + 1):
        write_model(tmp_path / f"{epoch}", epoch)
    after: list[object] = []
    for old, new in itertools.pairwise(range(count + 1)):
        said = _run("delta", tmp_path / f"{old}", tmp_path / f"{new}", "-o", tmp_path / f"d{new}", *after)
        assert "users: 400 rows changed" in said and "items: 400 rows changed" in said
        after = ["--after", tmp_path / f"d{new}"]
    target = tmp_path / "model"
    shutil.copytree(tmp_path / "0", target)
    deltas = [tmp_path / f"d{n + 1}" for n in range(count)]
    survived = apply_with_kills(target, deltas, lambda: _bundle_sequence(target), kills=kills)
    assert survived.kills == kills and 0 < survived.applied <= count
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_bundles_that_are_not_of_one_model_are_refused(write_model: WriteModel, tmp_path: Path) -> None:
    a, b = write_model(tmp_path / "a", 0), write_model(tmp_path / "b", 1)
    with pytest.raises(RuntimeError, match="nothing to write"):
        _run("delta", a, a, "-o", tmp_path / "same")
    program = files.read_host_program(b)
    files.write_json(b / files.HOST_PROGRAM, program.__class__(schema_version=2, operators=(), columns=()))
    files.write_manifest(b, files.read_manifest(b))
    with pytest.raises(RuntimeError, match="ids no longer mean"):
        _run("delta", a, b, "-o", tmp_path / "d")
    assert not (tmp_path / "same").exists() and not (tmp_path / "d").exists()
