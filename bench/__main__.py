"""`python -m bench SUITE`: measures again what `bench/results/` holds."""

import importlib
import sys

SUITES = {
    "dense": "the dense half against TensorFlow, XLA, ONNX Runtime and OpenVINO",
    "convert": "what the converter takes, and what it costs",
}


def main() -> None:
    """Hands the rest of the command line to the suite."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name not in SUITES:
        listed = "\n".join(f"  {suite:10} {what}" for suite, what in SUITES.items())
        usage = f"usage: python -m bench SUITE [OPTIONS]\n\nsuites:\n{listed}\n\nEach has its own --help."
        if name in ("-h", "--help"):
            print(usage)
            return
        raise SystemExit(f"there is no suite {name!r}\n\n{usage}")
    importlib.import_module(f"bench.{name}").main(rest)


if __name__ == "__main__":
    main()
