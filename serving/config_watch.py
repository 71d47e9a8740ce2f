"""Looks at a `--model_config_file` while the server runs."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from jaxrank.errors import JaxrankError
from serving.model_config import ModelConfig, parse_model_config, read_text
from serving.repository import ModelRepository

log = logging.getLogger("jaxrank")


class ConfigWatch:
    """Gives a repository the models of a file whenever it changes. What cannot be done of them is logged
    once and tried again at each look, and what is served goes on."""

    def __init__(
        self, path: Path, seconds: float, repository: ModelRepository, models: Path | Sequence[ModelConfig]
    ):
        """Starts to look every `seconds`. The repository was given `models`, which the file had when it was
        read: it may have others by now."""
        self._path, self._seconds, self._repository = path, seconds, repository
        self._models, self._done = models, True
        """Those that the repository was given last, and whether all of them are served."""
        self._text: str | None = None
        """They are of this text."""
        self._said = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="config-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops looking. Models that load now are not waited for."""
        self._stop.set()

    def close(self, seconds: float) -> None:
        """Waits until it has stopped, at most so long."""
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._look()
                self._said = ""
            except Exception as error:  # the watch must outlive whatever a file system does
                if repr(error) == self._said:
                    continue
                self._said = repr(error)
                log.error(
                    "the models of %s: %s; what is served goes on, trying again every %g s",
                    self._path,
                    error,
                    self._seconds,
                    exc_info=None if isinstance(error, JaxrankError) else error,
                )

    def _look(self) -> None:
        text = read_text(self._path)
        if text != self._text:
            models = parse_model_config(self._path, text)
            changed = self._text is not None or models != self._models
            self._text = text
            if changed:
                self._models, self._done = models, False
                self._repository.reconfigure(models)
                self._done = True
                log.info("%s changed: serving its models", self._path)
        elif not self._done and self._repository.complete(self._models):
            self._done = True
            log.info("%s: serving all its models and labels now", self._path)
