"""The suite of loads beside requests, on a small model."""

from pathlib import Path

import msgspec

from bench.loading import main


def test_figures(ranker_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "loading.json"
    main(["--quick", "--served", str(ranker_bundle), "--loaded", str(ranker_bundle), "--out", str(output)])
    figures = {f["name"]: f for f in msgspec.json.decode(output.read_bytes())["figures"]}
    assert len(figures) == 8 and all(f["value"] > 0 and f["runs"] > 0 for f in figures.values())
    assert figures["load_p99_ratio"]["value"] == (
        figures["p99_while_loading"]["value"] / figures["p99_quiet"]["value"]
    )
    assert figures["p99_while_loading_normal_priority"]["unit"] == "ms"
