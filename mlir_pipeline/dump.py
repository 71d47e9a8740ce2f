# jaxprs have no complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Every stage of a compilation as a file, for `--dump-ir`."""

import re
from pathlib import Path

from jax.extend import core

from jaxrank.errors import DestinationError
from mlir_pipeline.errors import CompileError

# Functions among an equation's parameters print with their address.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class IrDump:
    """Writes stages as numbered files into a directory; without one it writes nothing.

    The same program gives the same bytes: no addresses, file names or times.
    """

    def __init__(self, directory: Path | None, bundle: Path | None = None):
        """The directory is made with the first stage: what is refused before leaves none.

        Raises `CompileError` if it has files (stages of two compilations would be mixed), if it is no
        directory, or if it is inside of `bundle`, which is replaced as a whole.
        """
        self._directory = directory
        self._written = 0
        self._last = ""
        if directory is None:
            return
        if directory.exists() and not directory.is_dir():
            raise CompileError(f"{directory} is not a directory; give --dump-ir a new directory")
        if directory.is_dir() and any(directory.iterdir()):
            raise CompileError(f"{directory} is not empty; give --dump-ir a new directory")
        if bundle is not None and directory.resolve().is_relative_to(bundle.resolve()):
            raise CompileError(
                f"{directory} is inside of the bundle {bundle}, which the compiled one replaces; give "
                "--dump-ir a directory elsewhere"
            )

    def write(self, name: str, text: str) -> None:
        """Writes `NN_name`. Raises `DestinationError` where that fails."""
        if self._directory is None:
            return
        path = self._directory / f"{self._written:02d}_{name}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            path.write_text(text.rstrip("\n") + "\n")
        except OSError as error:
            raise DestinationError(
                f"{path} cannot be written: {error}; give --dump-ir another place"
            ) from error
        self._written += 1

    def write_jaxpr(self, name: str, closed: core.ClosedJaxpr) -> None:
        """Writes `NN_name.jaxpr.txt`, with the Flax module of each equation beside it, unless it is the jaxpr
        that was written before. Weights are named, not printed."""
        if self._directory is None:
            return
        text = _ADDRESS.sub("", str(closed.jaxpr.pretty_print(name_stack=True, source_info=False)))
        if text != self._last:
            self.write(f"{name}.jaxpr.txt", text)
            self._last = text
