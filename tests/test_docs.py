"""The commands in the documentation run as they stand, page by page, in a directory that has a SavedModel."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import models

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / "docs").glob("*.md") if "```bash" in p.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_of_a_page(page: Path, ranker_saved_model: Path, tmp_path: Path) -> None:
    """`jaxrank serve` runs in the background until the page ends; port 8500 becomes a free one."""
    shutil.copytree(ranker_saved_model, tmp_path / "saved_model")
    if "--request-inputs" in page.read_text():
        shutil.rmtree(tmp_path / "saved_model")
        models.save_ranker(tmp_path / "saved_model", user_rows=None)
    requests = {0: models.ranker_request(1, 1), 1: models.ranker_request(40, 2)}
    np.savez(
        tmp_path / "requests.npz",
        **{f"{i}/{k}": v for i, r in requests.items() for k, v in models.as_npz(r).items()},
    )
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    servers: list[subprocess.Popen] = []
    address = "localhost:8500"
    try:
        for language, code in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.S):
            if language == "python":
                command = [sys.executable, "-c", code.replace("localhost:8500", address)]
                subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
                continue
            for line in code.strip().splitlines():
                if line.startswith("jaxrank serve"):
                    command = line.replace("8500", "0").split() + ["--host", "127.0.0.1"]
                    server = subprocess.Popen(
                        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
                    )
                    servers.append(server)
                    assert server.stderr is not None
                    found = next(
                        filter(None, (re.search(r"serving on (\S+): ranker", x) for x in server.stderr))
                    )
                    address = found.group(1)
                else:
                    subprocess.run(line, shell=True, cwd=tmp_path, env=environment, check=True, timeout=300)
    finally:
        for server in servers:
            server.kill()
            server.wait()
            if server.stderr is not None:
                server.stderr.close()


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_host_operator_is_documented() -> None:
    from serving.host.operators import OPERATORS

    text = (ROOT / "docs" / "host_program.md").read_text()
    assert all(f"`{name}`" in text for name in OPERATORS)
