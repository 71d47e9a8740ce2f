"""A `--model_config_file` that changes: what comes later is served when it has come."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.config_watch import ConfigWatch
from serving.errors import InvalidRequestError
from serving.model_config import ModelConfig, read_model_config
from serving.repository import ModelRepository
from tests.serving.lifecycle.versions import eventually

SECONDS = 0.02


@pytest.fixture
def base(ranker_bundle: Path, tmp_path: Path) -> Path:
    """Version 1 of model `a`, and a directory for model `b`."""
    shutil.copytree(ranker_bundle, tmp_path / "a" / "1")
    (tmp_path / "b").mkdir()
    return tmp_path


def _write(base: Path, *names: str, label: str = "stable", version: int = 1) -> Path:
    """A configuration file of these models, each with one label."""
    entries = (
        f'config {{ name: "{name}" base_path: "{base / name}" model_version_policy {{ all {{}} }} '
        f'version_labels {{ key: "{label}" value: {version} }} }}'
        for name in names
    )
    path = base / "models.config"
    path.with_suffix(".new").write_text(f"model_config_list {{ {' '.join(entries)} }}")
    return path.with_suffix(".new").rename(path)


@contextmanager
def _watched(
    path: Path, models: Sequence[ModelConfig] | None = None
) -> Iterator[tuple[ModelRepository, ConfigWatch]]:
    """A repository of these models (the file's by default), and who looks at the file."""
    models = models or read_model_config(path)
    repository = ModelRepository(models)
    repository.scan()
    repository.assign_labels()
    watch = ConfigWatch(path, SECONDS, repository, models)
    yield repository, watch
    watch.close(10)
    repository.close()


def _labelled(repository: ModelRepository, name: str, label: str) -> Callable[[], bool]:
    def is_there() -> bool:
        try:
            return bool(repository.statuses(name, label=label))
        except InvalidRequestError:
            return False

    return is_there


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_a_model_that_comes_later(base: Path, ranker_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else scans here. The other model has its label meanwhile, and the error is said once."""
    path = _write(base, "a")
    with _watched(path) as (repository, _):
        _write(base, "a", "b", label="new")
        eventually(_labelled(repository, "a", "new"))
        time.sleep(10 * SECONDS)
        (error,) = _errors(caplog)
        assert "1 model(s) did not become available: b; see" in error and "trying again every" in error
        shutil.copytree(ranker_bundle, base / "b" / "1")
        eventually(_labelled(repository, "b", "new"))
        assert repository.loaded() == {"a": 1, "b": 1}


def test_a_label_whose_version_comes_later(
    base: Path, ranker_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write(base, "a")
    with _watched(path) as (repository, _):
        _write(base, "a", version=2)
        eventually(lambda: bool(_errors(caplog)))
        assert [s.version for s in repository.statuses("a", label="stable")] == [1]
        time.sleep(10 * SECONDS)
        (error,) = _errors(caplog)
        assert "label 'stable' to version 2" in error
        shutil.copytree(ranker_bundle, base / "a" / "2")
        eventually(lambda: [s.version for s in repository.statuses("a", label="stable")] == [2])


def test_what_changed_during_the_first_load(base: Path) -> None:
    models = read_model_config(_write(base, "a"))
    path = _write(base, "a", label="new")
    with _watched(path, models) as (repository, _):
        eventually(_labelled(repository, "a", "new"))


def test_back_to_what_it_was(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a configuration of which a part was done, and one that is none."""
    path = _write(base, "a")
    with _watched(path) as (repository, _):
        for broken in (lambda: _write(base, "a", "b", label="new"), lambda: path.write_text("nothing")):
            errors = len(_errors(caplog))
            broken()
            eventually(lambda errors=errors: len(_errors(caplog)) > errors)
            _write(base, "a")
            eventually(_labelled(repository, "a", "stable"))
        repository.reconfigure((ModelConfig("other", base / "a"),))
        path.write_text(f"# edited\n{path.read_text()}")
        eventually(lambda: repository.loaded() == {"a": 1})
        path.unlink()
        eventually(lambda: "cannot be read" in _errors(caplog)[-1])
        time.sleep(10 * SECONDS)
        assert sum("cannot be read" in error for error in _errors(caplog)) == 1


def test_calls_are_not_undone(base: Path, ranker_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While a model is tried again, one that was unloaded stays so, and so do other models by RPC."""
    path = _write(base, "a")
    with _watched(path) as (repository, _):
        _write(base, "a", "b")
        eventually(lambda: bool(_errors(caplog)))
        repository.unload("a")
        shutil.copytree(ranker_bundle, base / "b" / "1")
        eventually(_labelled(repository, "b", "stable"))
        assert repository.loaded() == {"b": 1}
        shutil.rmtree(base / "a")
        _write(base, "a", "b", label="new")
        eventually(lambda: "did not become available: a;" in _errors(caplog)[-1])
        repository.reconfigure((ModelConfig("c", base / "b"),))
        time.sleep(10 * SECONDS)
        assert repository.loaded() == {"c": 1}
