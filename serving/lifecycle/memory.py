"""What a version takes of the server's memory: known before it is loaded, and measured after.

Files are mapped, so that their pages are shared with other processes and taken back when memory is short; a
server is quick only if they stay. A module that packs matrices (data tiling) reads a packed copy of the
weights: a file, where it was compiled on a CPU that runs it, and otherwise memory of each stream's own. The
buffers in which requests run are not counted.
"""

import re
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest, Target
from jaxrank.targets import choose_target
from serving.engines import default_streams
from serving.lifecycle.errors import MemoryLimitError


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a version takes when all of it is resident."""

    tables: int
    """Mapped files of embedding tables; those in stores are not among them."""
    vocabularies: int
    weights: int
    """The mapped archive, once for all streams."""
    packed: int
    """Weights as products read them: mapped archives, or copies that streams make for themselves."""
    modules: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Resident:
    """Bytes of one file that are mapped into the process, and that are in memory now."""

    mapped: int
    resident: int


def expected_use(
    bundle: Path,
    manifest: Manifest,
    *,
    target: str,
    engine: str | None,
    streams: int | None,
    elsewhere: Container[str] = frozenset(),
) -> MemoryUse:
    """What a bundle will take on `streams` streams of its target, from the sizes of its files. `elsewhere`
    are files that a store holds. Raises `BundleError` for a file that is missing."""

    def size(names: Container[str]) -> int:
        try:
            return sum((bundle / f).stat().st_size for f in manifest.files if f in names)
        except OSError as error:
            raise BundleError(f"{bundle} is not complete: {error}; copy the bundle again") from error

    tables = {t.file for t in manifest.tables if t.file not in elsewhere}
    prefixes = tuple(f"{v.file}." for v in manifest.vocabularies)
    vocabularies = {f for f in manifest.files if prefixes and f.startswith(prefixes)}
    weights = size({files.WEIGHTS})
    chosen = _chosen(bundle, manifest, target, engine)
    packed = 0
    if chosen is not None and chosen.engine == "iree" and chosen.on_cpu:
        archives = {str(files.packed_weights(Path(module))) for module in chosen.modules}
        packs = chosen.data_tiling or any(program.data_tiling for program in chosen.programs)
        copies = (streams or default_streams(chosen)) if packs else 0
        packed = size(archives) or weights * copies
    return MemoryUse(
        tables=size(tables),
        vocabularies=size(vocabularies),
        weights=weights,
        packed=packed,
        modules=0 if chosen is None else size(set(chosen.modules)),
    )


def _chosen(bundle: Path, manifest: Manifest, target: str, engine: str | None) -> Target | None:
    try:
        return choose_target(bundle, manifest, target, engine=engine)
    except BundleError:
        return None  # the host makes every output, or loading it says what is missing


def check_limit(use: MemoryUse, in_use: int, limit: int | None) -> None:
    """Raises `MemoryLimitError` where a version does not fit beside `in_use` bytes of others."""
    if limit is None or in_use + use.total <= limit:
        return
    parts = ", ".join(f"{name} {_mib(value)}" for name, value in asdict(use).items() if value)
    raise MemoryLimitError(
        f"it would take {_mib(use.total)} MiB ({parts}), what is loaded takes {_mib(in_use)} MiB, and "
        f"--memory-limit-mb is {_mib(limit)}; a version that it replaces stays loaded until the switch, and "
        "while it may be needed again. Raise the limit, serve fewer models, or put tables into a store "
        "(--tables-config)"
    )


def resident_files(bundle: Path, smaps: Path = Path("/proc/self/smaps")) -> dict[str, Resident]:
    """What is mapped of a bundle's files now, by their names in it; empty where the system does not say."""
    found: dict[str, Resident] = {}
    if not smaps.is_file():
        return found
    name, mapped = None, 0
    inside = f"{bundle.resolve()}/"
    for line in smaps.read_text().splitlines():
        if header := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)", line):
            path = header[1]
            name = path.removeprefix(inside) if path.startswith(inside) else None
        elif name is not None and line.startswith("Size:"):
            mapped = int(line.split()[1]) << 10
        elif name is not None and line.startswith("Rss:"):
            before = found.get(name, Resident(0, 0))
            found[name] = Resident(before.mapped + mapped, before.resident + (int(line.split()[1]) << 10))
    return found


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f}"
