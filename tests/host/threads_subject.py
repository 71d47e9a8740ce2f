"""`python -m tests.host.threads_subject [CORE]`: many threads run one program, long enough for helpers to be
woken, and check their answers. CORE is another build of the native core, with sanitizers."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.host.hostile_subject import load_core


def main() -> None:
    """Prints the number of requests."""
    if len(sys.argv) > 1:
        load_core(sys.argv[1])
    from jaxrank.host_program import HOST_SCHEMA_VERSION, BlockColumn, HostOperator, HostProgram
    from serving.host.native import NativeProgram
    from tests.tables import table_of

    lookups, requests = 40, 200
    table = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    names = [f"id_{i}" for i in range(lookups)]
    operators = tuple(
        HostOperator(
            op="embedding_lookup",
            name="lookup",
            inputs=(n,),
            outputs=(f"{n}_rows",),
            scope="candidate",
            attrs={"table": "t"},
        )
        for n in names
    )
    columns = tuple(
        BlockColumn(
            tensor=f"{n}_rows", feature=n, scope="candidate", offset=4 * i, shape=(4,), dtype="float32"
        )
        for i, n in enumerate(names)
    )
    program = HostProgram(schema_version=HOST_SCHEMA_VERSION, operators=operators, columns=columns)
    raw = {f"{n}_rows": {n} for n in names}
    native = NativeProgram(program, dict.fromkeys(names, "int64"), raw, {"t": table_of(table)}, {})

    def answer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(1, 4000))
        ids = {n: rng.integers(0, 50, (rows, 1)) for n in names}
        _, block, _ = native.run(ids, rows)
        np.testing.assert_array_equal(block, np.hstack([table[v[:, 0]] for v in ids.values()]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(answer, range(requests)))
    assert native.shared_runs > 0, "no helper was woken"
    print(f"{requests} requests")


if __name__ == "__main__":
    main()
