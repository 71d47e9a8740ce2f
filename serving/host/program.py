"""Runs a host program: raw features in, two feature blocks out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.host_program import HostProgram
from jaxrank.manifest import Manifest, Scope
from serving.errors import InvalidRequestError
from serving.host.lookups import open_table, open_vocabulary
from serving.host.operators import OPERATORS, Lookups, decode_constant


@dataclass(frozen=True)
class FeatureBlocks:
    """`request` is `[1, R]`, `candidate` is `[N, C]`; float32, C-contiguous."""

    request: np.ndarray
    candidate: np.ndarray


class HostProgramRunner:
    """A bundle's host program with its tables and vocabularies. Thread-safe: a run shares nothing but
    read-only tables."""

    def __init__(self, bundle: Path, manifest: Manifest):
        self.program = files.read_host_program(bundle)
        unknown = sorted({o.op for o in self.program.operators} - OPERATORS.keys())
        if unknown:
            raise BundleError(
                f"{bundle / files.HOST_PROGRAM} uses host operators that this jaxrank does not have: "
                f"{', '.join(unknown)}"
            )
        self._lookups = Lookups(
            tables={t.name: open_table(bundle, t) for t in manifest.tables},
            vocabularies={v.name: open_vocabulary(bundle, v) for v in manifest.vocabularies},
        )
        self._attrs = [_decode(o.attrs) for o in self.program.operators]
        self._raw = _raw_features(self.program)
        self._candidate_inputs = [t.name for t in manifest.signature.inputs if t.scope == "candidate"]

    def run(self, features: Mapping[str, np.ndarray]) -> FeatureBlocks:
        """Runs every operator and fills the blocks.

        Args:
            features: checked by `serving.validation`: request-scope arrays have one row, candidate-scope
                arrays N.

        Raises:
            InvalidRequestError: an id has no row in its table.
        """
        values: dict[str, np.ndarray] = dict(features)
        for operator, attrs in zip(self.program.operators, self._attrs, strict=True):
            inputs = [values[name] for name in operator.inputs]
            try:
                values[operator.output] = OPERATORS[operator.op](self._lookups, *inputs, **attrs)
            except InvalidRequestError as error:
                raw = ", ".join(map(repr, sorted(self._raw[operator.output])))
                raise InvalidRequestError(f"feature {raw}: {error}") from error
        rows: dict[Scope, int] = {"request": 1, "candidate": len(features[self._candidate_inputs[0]])}
        blocks = {scope: np.empty((n, self.program.width(scope)), np.float32) for scope, n in rows.items()}
        for column in self.program.columns:
            value = values[column.tensor].reshape(rows[column.scope], -1)
            blocks[column.scope][:, column.offset : column.offset + value.shape[1]] = value
        return FeatureBlocks(request=blocks["request"], candidate=blocks["candidate"])


def _raw_features(program: HostProgram) -> dict[str, set[str]]:
    """The model inputs that each operator's output is made from."""
    raw: dict[str, set[str]] = {}
    for operator in program.operators:
        raw[operator.output] = set().union(*(raw.get(name, {name}) for name in operator.inputs))
    return raw


def _decode(attrs: Mapping[str, Any]) -> dict[str, Any]:
    decoded = dict(attrs)
    if "constants" in decoded:
        decoded["constants"] = {k: decode_constant(v) for k, v in decoded["constants"].items()}
    if "override" in decoded:
        override = decoded["override"]
        decoded["override"] = {"key": decode_constant(override["key"])[()], "value": override["value"]}
    return decoded
