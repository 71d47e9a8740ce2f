"""Checks and times compiled bundles on a device.

    python -m bench.gpu.dense BUNDLE... --target cuda:sm_80 --out gpu.json

Needs the serving install only (numpy, iree.runtime, grpcio, this package). Scores are compared with the
TensorFlow outputs that the bundle recorded before anything is timed: a fast wrong answer is no result.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from bench.results import Figure, write_results
from jaxrank.certificate import certify, load_examples
from serving.model import Model

CANDIDATES = (1, 200, 1000, 5000)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, help="compiled bundles")
    parser.add_argument(
        "--target", default="cuda:sm_80", help="compiled target to run (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="figures (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=50, help="timed runs for each size (default: %(default)s)"
    )
    arguments = parser.parse_args()
    figures = [f for bundle in arguments.bundles for f in measure(bundle, arguments.target, arguments.runs)]
    for figure in figures:
        print(f"{figure.name:<48} {figure.value:10.3e} {figure.unit}")
    write_results(
        arguments.out, "gpu_dense", f"python -m bench.gpu.dense --target {arguments.target}", figures
    )


def measure(bundle: Path, target: str, runs: int) -> list[Figure]:
    """Largest error on the recorded requests, then milliseconds of a whole request at each number of
    candidates.

    Raises `CertificateError` when the device's scores are not TensorFlow's.
    """
    model = Model.load(bundle, target=target)
    try:
        examples = load_examples(bundle)
        certificate = certify(target, examples, [model.predict(e.features) for e in examples])
        name = f"{bundle.resolve().parent.name}/{target}"
        figures = [Figure(name=f"{name}/max_abs_error", value=certificate.max_abs_error, unit="score")]
        largest = max(examples, key=lambda e: e.rows)
        candidate = {t.name for t in model.manifest.signature.inputs if t.scope == "candidate"}
        for count in (n for n in CANDIDATES if n <= model.manifest.max_candidates):
            features = {
                k: np.resize(v, (count, *v.shape[1:])) if k in candidate else v
                for k, v in largest.features.items()
            }
            seconds = []
            for _ in range(runs + 5):
                start = time.perf_counter()
                model.predict(features)
                seconds.append(time.perf_counter() - start)
            timed = np.array(seconds[5:]) * 1e3
            lo, hi = np.percentile(timed, [5, 95])
            figures.append(
                Figure(
                    name=f"{name}/ms_{count}",
                    value=float(np.median(timed)),
                    unit="ms",
                    lo=float(lo),
                    hi=float(hi),
                    runs=runs,
                )
            )
        return figures
    finally:
        model.close()


if __name__ == "__main__":
    main()
