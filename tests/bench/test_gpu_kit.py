"""The script for a lent GPU machine runs as it stands; here on the CPU target."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_kit_runs(ranker_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu.dense", str(ranker_bundle), "--target", "cpu", "--runs", "3"]
    subprocess.run([*command, "--out", str(tmp_path / "gpu.json")], cwd=ROOT, check=True, timeout=120)
    document = json.loads((tmp_path / "gpu.json").read_text())
    names = [f["name"].rsplit("/", 1)[1] for f in document["figures"]]
    assert names == ["max_abs_error", "ms_1", "ms_200", "ms_1000", "ms_5000"]
    assert document["figures"][0]["value"] <= 1e-5
