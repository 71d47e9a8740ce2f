"""Looks at a `--model_config_file` while the server runs."""

import logging
import threading
from pathlib import Path

from jaxrank.errors import JaxrankError
from serving.model_config import read_model_config
from serving.repository import ModelRepository

log = logging.getLogger("jaxrank")


class ConfigWatch:
    """Gives a repository the models of a file whenever its text changes; a text that cannot be used is logged
    and what is served goes on."""

    def __init__(self, path: Path, seconds: float, repository: ModelRepository):
        """Starts to look every `seconds`. The repository has the models of the present text."""
        self._path, self._seconds, self._repository = path, seconds, repository
        self._text = self._read()
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

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError as error:
            log.error("%s cannot be read: %s; serving what it had", self._path, error)
            return None

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            text = self._read()
            if text is None or text == self._text:
                continue
            self._text = text
            try:
                self._repository.reconfigure(read_model_config(self._path))
                log.info("%s changed: serving its models", self._path)
            except JaxrankError as error:
                log.error("%s changed: %s", self._path, error)
            except Exception:  # the watch must outlive whatever a file system does
                log.exception("%s changed, and its models could not be taken", self._path)
