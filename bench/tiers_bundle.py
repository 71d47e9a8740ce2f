"""A bundle that is nothing but tables, for commands and measurements that need no model."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank.host_program import HOST_SCHEMA_VERSION, HostProgram
from jaxrank.manifest import SCHEMA_VERSION, Certificate, Manifest, Signature, Source, Table
from serving.tables import RowFormat, TableWriter, open_table

_STEP = 1 << 17


def write_random_table(
    path: Path, rows: int, dim: int, *, seed: int = 0, row_format: RowFormat = "f32", keyed: bool = False
) -> None:
    """Normal float32 rows; keys are spread over all of int64."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TableWriter(path, dim, row_format, keyed, "zeros" if keyed else "error") as writer:
        for start in range(0, rows, _STEP):
            count = min(_STEP, rows - start)
            # Multiples of an odd number are distinct.
            numbers = np.arange(start, start + count, dtype=np.int64)
            keys = numbers * np.int64(0x5851F42D4C957F2D) if keyed else None
            writer.append(rng.standard_normal((count, dim), np.float32), keys)


def write_bundle(bundle: Path, names: Iterable[str]) -> None:
    """Writes the manifest of a bundle whose `tables/<name>.table` are there."""
    entries = []
    for name in names:
        file = f"tables/{name}.table"
        table = open_table(bundle / file)
        entries.append(
            Table(
                name=name,
                rows=table.rows,
                dim=table.dim,
                dtype="float32",
                row_format=table.row_format,
                keyed=table.keyed,
                bytes=(bundle / file).stat().st_size,
                file=file,
            )
        )
    program = HostProgram(schema_version=HOST_SCHEMA_VERSION, operators=(), columns=())
    files.write_json(bundle / files.HOST_PROGRAM, program)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        source=Source(format="none", path="", tensorflow="", jaxrank="", created=""),
        signature=Signature(name="serving_default", method_name="", inputs=(), outputs=()),
        max_candidates=1,
        tables=tuple(entries),
        vocabularies=(),
        ops=(),
        certificate=Certificate(stage="none", tolerance=0.0, requests=0, outputs=()),
    )
    files.write_manifest(bundle, manifest)
