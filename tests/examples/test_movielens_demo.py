"""`make demo`, shortened to one pass over the ratings: every stage runs, and scores are TensorFlow's."""

import json
import subprocess
import sys
from pathlib import Path

from jaxrank import bundle as files
from tests.conftest import CACHE

ROOT = Path(__file__).parents[2]


def test_the_demo(movielens_dir: Path, tmp_path: Path) -> None:
    assert movielens_dir.is_dir()
    command = [sys.executable, "-m", "examples.movielens.demo", "--quick"]
    command += ["--work", str(tmp_path), "--cache", str(CACHE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("best of") == 3  # three users' top ten
    assert f"jaxrank serve {tmp_path / 'models'}" in done.stdout
    figures = {
        f["name"]: f["value"] for f in json.loads((tmp_path / "first_light.json").read_text())["figures"]
    }
    assert set(figures) == {
        "max_abs_error", "auc_difference", "served_p50_over_tf_p50", "convert_s", "compile_s",
    }  # fmt: skip
    assert figures["max_abs_error"] <= 1e-5 and figures["auc_difference"] <= 1e-4
    manifest = files.verify(tmp_path / "models" / "movielens" / "1")
    assert {t.name for t in manifest.targets} == {"cpu", "cuda:sm_80", "vulkan"}
