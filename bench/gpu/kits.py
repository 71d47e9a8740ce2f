"""What the commands that write kits share: options, models by name, and a directory that is whole or not
there."""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.dense import WORK
from jaxrank.errors import JaxrankError

if TYPE_CHECKING:
    from bench.dense_models import DenseModel


class KitError(JaxrankError):
    """A kit that cannot be written, or would be wrong."""


def parse(
    argv: Sequence[str] | None, program: str, about: str | None, default: Sequence[str]
) -> "tuple[argparse.Namespace, list[DenseModel]]":
    """The options of a command, and the models that they name; none named are the `default`, and all of the
    suite where that is empty. Stops the program where there is no model of a name."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=(about or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the kit, a new directory")
    parser.add_argument(
        "--models", nargs="+", default=list(default), metavar="NAME",
        help=f"of the suite dense ({' '.join(default) or 'all'})",
    )  # fmt: skip
    parser.add_argument(
        "--target", default="cuda:sm_80", help="cuda:sm_80, cuda:sm_89, vulkan, cpu, ... (%(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="DIR",
        help="models and bundles, kept for the next run (%(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    from converters.tensorflow_logs import import_quietly

    import_quietly()
    from bench.dense_models import MODELS

    known = {m.name: m for m in MODELS}
    if unknown := sorted(set(arguments.models) - set(known)):
        raise SystemExit(f"there is no model {', '.join(unknown)}; models are: {', '.join(known)}")
    return arguments, [known[name] for name in dict.fromkeys(arguments.models or known)]


@contextmanager
def writing(out: Path, target: str) -> Iterator[Path]:
    """A directory to write a kit for the target into, which gets the name `out` at the end of the block, and
    is removed where that raises.

    Raises `KitError` where `out` exists, `CompileError` for a target that nobody knows.
    """
    from mlir_pipeline.iree import parse_target

    parse_target(target)
    if out.exists():
        raise KitError(f"{out} exists; remove it, or choose another directory")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
