"""The Flax module of a model that mixes candidates: written for three fixed numbers of candidates, and made
one by what differs.

Every shape is a number when a module is written. A number that depends on how many candidates there are is
another one in each of the three texts; it becomes an expression of `n`. Nothing has to be inferred
symbolically, and a number that does not follow `a * n + b` is refused.
"""

import io
import tokenize
from collections.abc import Sequence

import numpy as np

from converters.errors import ConversionError
from converters.flax_writer import RANKER_CALL

ROWS = (131, 137, 139)
"""Numbers of candidates that models are unlikely to have as sizes of their own. Even if one does, only what
differs between the texts is taken for their number."""


def merge(sources: Sequence[str], first_feature: str | None, rows: Sequence[int] = ROWS) -> str:
    """One module for any number of candidates from modules for `rows` candidates. `first_feature` is a
    candidate's.

    Raises `ConversionError` where they differ in more than numbers, or in numbers that do not grow evenly
    with the candidates.
    """
    tokens = [list(tokenize.generate_tokens(io.StringIO(s).readline)) for s in sources]
    if len({len(t) for t in tokens}) != 1:
        raise ConversionError(
            "the model computes something else for another number of candidates; it cannot be one module"
        )
    lines = sources[0].splitlines(keepends=True)
    replaced: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    for same in zip(*tokens, strict=True):
        texts = [t.string for t in same]
        if len(set(texts)) == 1:
            continue
        if any(t.type != tokenize.NUMBER for t in same):
            raise ConversionError(
                f"the model computes something else for another number of candidates: {' / '.join(texts)}"
            )
        replaced.append((same[0].start, same[0].end, _expression(texts, rows)))
    for (line, start), (_, end), text in reversed(replaced):
        lines[line - 1] = lines[line - 1][:start] + text + lines[line - 1][end:]
    merged = "".join(lines)
    if not replaced or first_feature is None:
        return merged
    return merged.replace(
        f"    {RANKER_CALL}\n", f"    {RANKER_CALL}\n        n = candidate.{first_feature}.shape[0]\n"
    )


def _expression(texts: Sequence[str], rows: Sequence[int]) -> str:
    values = [float(t) for t in texts]
    (n1, n2, n3), (v1, v2, v3) = rows, values
    growth = (v1 - v2) / (n1 - n2)
    start = v1 - growth * n1
    if abs(growth * n3 + start - v3) <= 1e-6 * abs(v3) and growth == int(growth) and start == int(start):
        term = "n" if growth == 1 else f"{int(growth)} * n"
        return term if not start else f"({term} {'-' if start < 0 else '+'} {abs(int(start))})"
    share = v1 * n1
    if all(abs(v * n - share) <= 1e-6 * abs(share) for v, n in zip(values, rows, strict=True)):
        return f"({np.float32(share)} / n)"
    raise ConversionError(
        f"a number of the model is {', '.join(texts)} for {', '.join(map(str, rows))} candidates, which "
        "is no "
        "multiple of their number; it cannot be one module"
    )
