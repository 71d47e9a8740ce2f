"""A model without a dense half: it answers with the rows of its two tables, which tell their epoch."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.tiers_bundle import write_bundle
from jaxrank import bundle as files
from jaxrank.host_program import HOST_SCHEMA_VERSION, HostOperator, HostOutput, HostProgram
from jaxrank.manifest import Scope, Signature, TensorSpec
from serving.tables import TableWriter

ROWS, DIM = 400, 4
KEYS = np.arange(ROWS) * 1_000_003 - 7

WriteModel = Callable[[Path, int], Path]


def users(epoch: int) -> np.ndarray:
    """`[ROWS, DIM]`: every row is the epoch."""
    return np.full((ROWS, DIM), epoch, np.float32)


def write_epoch(bundle: Path, epoch: int, users_scope: Scope = "candidate") -> Path:
    """Writes a bundle at an epoch to a path: table `users` by row number, table `items` by key. With
    `users_scope` "request" there is one user, whose row every candidate gets."""
    scopes: dict[str, Scope] = {"users": users_scope, "items": "candidate"}
    (bundle / "tables").mkdir(parents=True)
    with TableWriter(bundle / "tables/users.table", DIM) as writer:
        writer.append(users(epoch))
    with TableWriter(bundle / "tables/items.table", DIM, keyed=True, default="mean") as writer:
        writer.append(users(epoch), KEYS)
    write_bundle(bundle, scopes)
    operators = [
        HostOperator(
            op="embedding_lookup",
            name=name,
            inputs=(f"{name}_ids",),
            outputs=(name,),
            scope=scope,
            attrs={"table": name},
        )
        for name, scope in scopes.items()
    ]
    program = HostProgram(
        schema_version=HOST_SCHEMA_VERSION,
        operators=tuple(operators),
        columns=(),
        outputs=tuple(HostOutput(output=name, tensor=name) for name in scopes),
    )
    files.write_json(bundle / files.HOST_PROGRAM, program)

    def spec(name: str, dtype: str, shape: tuple[int | None, ...], scope: Scope) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=shape, scope=scope, tensor_name=f"{name}:0")

    signature = Signature(
        name="serving_default",
        method_name="",
        inputs=tuple(spec(f"{name}_ids", "int64", (None,), scope) for name, scope in scopes.items()),
        outputs=tuple(spec(name, "float32", (None, DIM), "candidate") for name in scopes),
    )
    manifest = files.read_manifest(bundle)
    files.write_manifest(bundle, msgspec.structs.replace(manifest, signature=signature, max_candidates=5000))
    return bundle


@pytest.fixture(scope="session")
def write_model() -> WriteModel:
    """`write_epoch`, with a user for each candidate."""
    return write_epoch
