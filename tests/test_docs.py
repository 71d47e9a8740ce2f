"""The commands in the documentation run as they stand, page by page, in a directory that has a SavedModel."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.command_line import jaxrank
from tests.shared import Once

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / "docs").glob("*.md") if "```bash" in p.read_text())


FIRST = "jaxrank convert saved_model -o models/ranker/1"
"""What most pages begin with; it runs once for those that have the same model."""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def converted(ranker_saved_model: Path, environment: dict[str, str], once: Once) -> Path:
    """A directory after the first command."""

    def build(directory: Path) -> None:
        shutil.copytree(ranker_saved_model, directory / "saved_model")
        subprocess.run(FIRST, shell=True, cwd=directory, env=environment, check=True, timeout=300)

    return once("documented", build)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_of_a_page(
    page: Path,
    converted: Path,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`jaxrank serve` runs in the background until the page ends; ports 8500 and 8501 become free ones."""
    text, blocks = page.read_text(), re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.S)
    if "--request-inputs" in text:
        models.save_ranker(tmp_path / "saved_model", user_rows=None)
    else:
        shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
        language, block = blocks[0]
        if language == "bash" and block.startswith(f"{FIRST}\n"):
            blocks[0] = language, block.removeprefix(f"{FIRST}\n")
        else:
            shutil.rmtree(tmp_path / "models")
    requests = {0: models.ranker_request(1, 1), 1: models.ranker_request(40, 2)}
    np.savez(
        tmp_path / "requests.npz",
        **{f"{i}/{k}": v for i, r in requests.items() for k, v in models.as_npz(r).items()},
    )
    monkeypatch.chdir(tmp_path)
    servers: list[subprocess.Popen] = []
    address = "localhost:8500"
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        rest = str(one.getsockname()[1])
    try:
        for language, block in blocks:
            code = block.replace("8501", rest)
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
                elif line.startswith("jaxrank ") and not set(line) & set("|&;<>$*"):
                    done = jaxrank(*shlex.split(line)[1:])  # starting one imports TensorFlow for seconds
                    assert done.returncode == 0, f"{line}: {done.stderr}"
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
