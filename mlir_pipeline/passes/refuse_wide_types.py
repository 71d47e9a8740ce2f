# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""The policy on 64-bit values.

- i64 and ui64: never. Ids stay on the host, and the sizes of tensors are `index`.
- f64: only what `legalize_dynamism` makes afterwards, sums over candidates, and only on the CPU, where they
  are made one after the other; for GPUs IREE demotes them.

A model that computes with either was written for more precision than TensorFlow serves rankers with. Demoting
it silently would change ids above 2^31 and scores, so it is refused.
"""

from iree.compiler import ir

from mlir_pipeline.passes.program import Pass, mark_refused, walk

_WIDE = {
    "i64": "ids are looked up on the host; use int32",
    "ui64": "ids are looked up on the host; use int32",
    "f64": "use float32",
}


def refuse_wide_types(module: ir.Operation) -> bool:
    """Marks every operation that makes a 64-bit tensor. Returns whether it found any."""
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> None:
        for result in op.results:
            element = _element(result.type)
            if element in _WIDE:
                mark_refused(op, f"a value of type {element}; {_WIDE[element]}")
                found.append(op)
                return

    walk(module, visit)
    return bool(found)


def _element(kind: ir.Type) -> str:
    return str(ir.RankedTensorType(kind).element_type) if isinstance(kind, ir.RankedTensorType) else ""


PASS = Pass(
    name="refuse-wide-types",
    requires="StableHLO, before legalize-dynamism makes f64 sums",
    ensures="every operation with an i64, ui64 or f64 result is marked as refused",
    run=lambda program: refuse_wide_types(program.module.operation),
)
