"""A native program of one operator."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrank.host_program import HOST_SCHEMA_VERSION, HostOperator, HostOutput, HostProgram
from serving.host.native import MEMORY_LIMIT, NativeProgram
from serving.host.operators import Lookups
from serving.tables import Table


def dtype_name(value: np.ndarray) -> str:
    """As TensorFlow and the manifest name it."""
    return "string" if value.dtype == object else value.dtype.name


def run_natively(
    op: str,
    inputs: Sequence[np.ndarray],
    attrs: Mapping[str, Any],
    outputs: int = 1,
    constant: Sequence[int] = (),
    *,
    lookups: Lookups = Lookups(tables={}, vocabularies={}),  # noqa: B008
    vocabularies: Mapping[str, Any] | None = None,
    candidates: int = 1,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[np.ndarray, ...]:
    """The results of a native program of this one operator.

    Args:
        constant: positions of the inputs that are constants of the program.
        vocabularies: as `serving.host.lookups.vocabulary_parts` gives them.
    """
    features = {f"input_{i}": v for i, v in enumerate(inputs) if i not in constant}
    names = [f"output_{i}" for i in range(outputs)]
    operator = HostOperator(
        op=op,
        name=op,
        inputs=tuple(features),
        outputs=tuple(names),
        scope="candidate",
        attrs=dict(attrs),
        constants={str(i): _as_constant(inputs[i]) for i in constant},
    )
    program = HostProgram(
        schema_version=HOST_SCHEMA_VERSION,
        operators=(operator,),
        columns=(),
        outputs=tuple(HostOutput(output=n, tensor=n) for n in names),
    )
    native = NativeProgram(
        program,
        {n: dtype_name(v) for n, v in features.items()},
        {n: set(features) for n in names},
        {n: t for n, t in lookups.tables.items() if isinstance(t, Table)},
        vocabularies or {},
        memory_limit=memory_limit,
    )
    return tuple(native.run(features, candidates)[2])


def _as_constant(value: np.ndarray) -> dict[str, Any]:
    flat = value.ravel().tolist()
    values = [base64.b64encode(v).decode() for v in flat] if value.dtype == object else flat
    return {"dtype": dtype_name(value), "shape": list(value.shape), "values": values}
