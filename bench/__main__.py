"""`python -m bench SUITE`: measures again what `bench/results/` holds."""

import importlib
import sys

from bench.results import ResultsError
from jaxrank.errors import JaxrankError

SUITES = {
    "dense": "the dense half against TensorFlow, XLA, ONNX Runtime and OpenVINO",
    "tiers": "lookups in memory, RocksDB and a Redis Cluster, and what failures cost",
    "sparse": "pooled lookups against the memory's roofline, TensorFlow, NumPy and torch",
    "updates": "lookups under deltas, how fast deltas are applied, and kills while they are",
    "state": "slices of one request with and without its kept side, and Rank after PrepareRequest",
    "convert": "what the converter takes, and what it costs",
    "loading": "the latency of a served model while another one loads",
    "serve": "a server under load beside TensorFlow's, its overhead, and what it answers beyond saturation",
    "soak": "a server under 1.5 times its load while versions are swapped, every answer checked",
    "host": "the host half natively, on NumPy and in TensorFlow, and what it costs the allocator",
}
TOOLS = {
    "shadow": "a server's answers beside those of the one whose place it is to take, with an exit code",
}
"""What is no suite."""
_MODULES = {"host": "host_program"}
"""Of suites that are not their module's name."""


def main() -> None:
    """Hands the rest of the command line to the suite."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name not in SUITES | TOOLS:
        listed = "\n".join(f"  {suite:10} {what}" for suite, what in (SUITES | TOOLS).items())
        usage = f"usage: python -m bench SUITE [OPTIONS]\n\nsuites:\n{listed}\n\nEach has its own --help."
        if name in ("-h", "--help"):
            print(usage)
            return
        raise SystemExit(f"there is no suite {name!r}\n\n{usage}")
    try:
        start(name, rest)
    except JaxrankError as error:
        raise SystemExit(f"error: {error}") from error
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("bench", "converters", "jaxrank", "mlir_pipeline", "serving"):
            raise
        raise SystemExit(
            f"error: {error.name} is not installed; run: pip install 'jaxrank[bench]'"
        ) from error


def start(name: str, arguments: list[str]) -> None:
    """Runs a suite in this process. Raises `ResultsError` where it needs the repository's tests and there is
    no checkout."""
    try:
        importlib.import_module(f"bench.{_MODULES.get(name, name)}").main(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "tests":
            raise
        raise ResultsError(
            f"the suite {name} measures models of the repository's tests: run it in a checkout"
        ) from error


if __name__ == "__main__":
    main()
