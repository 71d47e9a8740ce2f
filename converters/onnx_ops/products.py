"""Matrix products."""

from converters.onnx_ops.registry import Operand, call, op


@op("MatMul")
def matmul(a: Operand, b: Operand) -> str:
    return call("jnp.matmul", a, b)


@op("Einsum")
def einsum(*xs: Operand, equation: bytes) -> str:
    return f"jnp.einsum({equation.decode()!r}, {', '.join(map(str, xs))})"


@op("Gemm")
def gemm(
    a: Operand,
    b: Operand,
    c: Operand | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> str:
    left, right = f"{a}{'.T' if transA else ''}", f"{b}{'.T' if transB else ''}"
    product = f"jnp.matmul({left}, {right})" if alpha == 1.0 else f"{alpha!r} * jnp.matmul({left}, {right})"
    if c is None:
        return product if alpha == 1.0 else f"({product})"
    return f"({product} + {c if beta == 1.0 else f'{beta!r} * {c}'})"


@op("Det")
def det(x: Operand) -> str:
    return call("jnp.linalg.det", x)
