"""The main job end to end on MovieLens 100k: train, convert, compile, serve, and compare with TensorFlow.

python -m examples.movielens.demo --help
"""

import argparse
import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table

from bench.results import Figure, write_results
from converters.tensorflow_logs import import_quietly
from examples.movielens import data as movielens
from serving.client import PredictClient

MODEL = "movielens"
TIMED_CANDIDATES = 1000
TIMED_REQUESTS = 200
MAX_ABS_ERROR = 1e-5
MAX_AUC_DIFFERENCE = 1e-4

console = Console(highlight=False, width=min(Console().width, 120) if sys.stdout.isatty() else 120)

Features = dict[str, np.ndarray]
Predict = Callable[[Features], Features]


@dataclass(frozen=True)
class Reference:
    """TensorFlow in this process. `timed` gives a call whose tensors are made beforehand, so that its time
    is the model's alone; the served time has the client's encoding, the wire and the decoding in it."""

    predict: Predict
    timed: Callable[[Features], Callable[[], Features]]


@dataclass(frozen=True)
class Comparison:
    """Served scores against TensorFlow's: worst absolute error of any output, both AUCs, seconds of each
    timed request."""

    max_abs_error: float
    auc_tensorflow: float
    auc_served: float
    tensorflow_s: np.ndarray
    served_s: np.ndarray


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--work", type=Path, default=Path("demo"), help="directory for all that is made (%(default)s)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="directory for the data set (%(default)s)"
    )
    parser.add_argument("--results", type=Path, help="figures as JSON (default: <work>/first_light.json)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one pass over the ratings in large batches: every stage, worse AUC",
    )
    arguments = parser.parse_args()
    run(
        arguments.work,
        arguments.cache,
        arguments.results or arguments.work / "first_light.json",
        arguments.quick,
    )


def run(work: Path, cache: Path, results: Path, quick: bool) -> None:
    """Runs every stage, prints what it shows, and writes the figures."""
    saved_model, bundle = work / "saved_model", work / "models" / MODEL / "1"
    work.mkdir(parents=True, exist_ok=True)
    with stage("Fetch MovieLens 100k"):
        directory = movielens.fetch(cache)
        data = movielens.load(directory)
        console.print(
            f"{len(data.users.id)} users, {len(data.movies.id)} movies, {len(data.interactions.rating)} "
            "ratings"
        )
    with stage("Train a Keras ranker and export it as a SavedModel"):
        command = [
            sys.executable,
            "-m",
            "examples.movielens.train",
            "--data",
            str(directory),
            "--out",
            str(saved_model),
        ]
        if quick:
            command += ["--epochs", "1", "--batch-size", "4096"]
        subprocess.run(command, check=True)
    with stage("Convert: TensorFlow -> host program + tables + Flax module"):
        save_examples(data, work / "examples.npz")
        convert_s = jaxrank("convert", saved_model, "-o", bundle, "--examples", work / "examples.npz")
    with stage("Compile: Flax -> StableHLO -> IREE, for this CPU, CUDA and Vulkan"):
        compile_s = jaxrank("compile", bundle, "--target", "cpu,cuda:sm_80,vulkan")
        jaxrank("inspect", bundle)
    with stage("Serve, and compare with TensorFlow"), server(work / "models", work / "server.log") as address:
        client = PredictClient(address)
        tensorflow = load_tensorflow(saved_model)

        def served(features: Features) -> Features:
            return client.predict(MODEL, features)

        worst = show_top_movies(data, tensorflow.predict, served)
        comparison = compare(data, tensorflow, served, worst)
        client.close()
    show(comparison)
    write_figures(results, comparison, convert_s, compile_s)
    difference = abs(comparison.auc_tensorflow - comparison.auc_served)
    if not (comparison.max_abs_error <= MAX_ABS_ERROR and difference <= MAX_AUC_DIFFERENCE):
        raise SystemExit(
            f"scores moved: largest difference {comparison.max_abs_error:.1e} "
            f"(at most {MAX_ABS_ERROR:.0e} is accepted), "
            f"AUC difference {difference:.1e} (at most {MAX_AUC_DIFFERENCE:.0e})"
        )
    console.print(f"\nFigures: {results}. Models: {work / 'models'}. Serve them again with:\n")
    console.print(
        f"    {Path(sys.executable).parent / 'jaxrank'} serve {work / 'models'}\n",
        style="bold",
        soft_wrap=True,
    )


@contextlib.contextmanager
def stage(title: str) -> Iterator[None]:
    """A headline, and the time the stage took."""
    console.rule(f"[bold]{title}", align="left")
    start = time.monotonic()
    yield
    console.print(f"[green]✓[/] {title} [dim]({time.monotonic() - start:.1f} s)[/]\n")


def jaxrank(*arguments: str | Path) -> float:
    """Runs the command line as a user would. Returns its seconds."""
    command = [str(Path(sys.executable).parent / "jaxrank"), *map(str, arguments)]
    shown = " ".join(["jaxrank", *command[1:]])
    console.print(f"$ {shown}", style="dim", soft_wrap=True)
    start = time.monotonic()
    if subprocess.run(command, env={**os.environ, "COLUMNS": str(console.width)}).returncode:
        raise SystemExit(f"`{shown}` failed; its message is above")
    return time.monotonic() - start


def save_examples(data: movielens.MovieLens, path: Path) -> None:
    """Real requests at 1, 7 and 200 candidates, in the form that `jaxrank convert --examples` reads."""
    arrays: dict[str, np.ndarray] = {}
    users = data.users.id[:: len(data.users.id) // 6][:6]
    for i, (user, rows) in enumerate(zip(users, (1, 1, 7, 7, 200, 200), strict=True)):
        unseen = movielens.request(data, int(user)).movie_ids
        chosen = np.random.default_rng(i).choice(unseen, rows, replace=False)
        for name, value in movielens.request(data, int(user), chosen).features.items():
            arrays[f"{i}/{name}"] = value.astype("S") if value.dtype == object else value
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def server(models: Path, log: Path) -> Iterator[str]:
    """`jaxrank serve` in a process of its own on a free port, once it is healthy. Yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        Path(sys.executable).parent / "jaxrank",
        "serve",
        models,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with log.open("w") as out:
        process = subprocess.Popen(list(map(str, command)), stderr=out)
    try:
        address = f"127.0.0.1:{port}"
        wait_until_healthy(address, process, log)
        console.print(f"$ jaxrank serve {models} --port {port}", style="dim")
        yield address
        process.send_signal(signal.SIGINT)
        if process.wait(30) != 0:
            raise SystemExit(f"the server ended with status {process.returncode}:\n{log.read_text()}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_healthy(address: str, process: subprocess.Popen, log: Path) -> None:
    """Asks the health service until it says SERVING, at most a minute."""
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with status {process.returncode}:\n{log.read_text()}")
            with contextlib.suppress(grpc.RpcError):  # not listening yet
                status = health.Check(health_pb2.HealthCheckRequest(), timeout=1).status
                if status == health_pb2.HealthCheckResponse.SERVING:
                    return
            time.sleep(0.1)
    raise SystemExit(f"the server was not healthy within a minute:\n{log.read_text()}")


def load_tensorflow(saved_model: Path) -> Reference:
    """The SavedModel in this process, as its users would run it: the loaded signature."""
    import_quietly()
    import tensorflow as tf

    loaded: Any = tf.saved_model.load(str(saved_model))

    def predict(features: Features) -> Features:
        outputs = loaded.signatures["serving_default"](**{k: tf.constant(v) for k, v in features.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def timed(features: Features) -> Callable[[], Features]:
        tensors = {name: tf.constant(value) for name, value in features.items()}

        def call() -> Features:
            return {k: v.numpy() for k, v in loaded.signatures["serving_default"](**tensors).items()}

        return call

    return Reference(predict, timed)


def show_top_movies(data: movielens.MovieLens, tensorflow: Predict, served: Predict) -> float:
    """Prints three users' best unseen movies. Returns the worst absolute error of any output."""
    worst = 0.0
    for user in np.random.default_rng(3).choice(data.users.id, 3, replace=False):
        request = movielens.request(data, int(user), before=int(data.interactions.timestamp[-1]) + 1)
        expected, found = tensorflow(request.features), served(request.features)
        worst = max(worst, *(float(np.abs(expected[k] - found[k]).max()) for k in expected))
        table = Table(
            title=f"User {user}: best of {len(request.movie_ids)} unseen movies", title_justify="left"
        )
        for column in ("movie", "TensorFlow", "served"):
            table.add_column(column, justify="left" if column == "movie" else "right")
        for at in np.argsort(-found["score"])[:10]:
            table.add_row(request.titles[at], f"{expected['score'][at]:.7f}", f"{found['score'][at]:.7f}")
        console.print(table)
    return worst


def compare(data: movielens.MovieLens, tensorflow: Reference, served: Predict, worst: float) -> Comparison:
    """AUC on the test period, and the time of the same requests, taken alternately."""
    likes, ours, theirs = [], [], []
    for labelled in movielens.labelled_requests(data, movielens.split(data).test):
        features = labelled.request.features
        expected, found = tensorflow.predict(features), served(features)
        worst = max(worst, *(float(np.abs(expected[k] - found[k]).max()) for k in expected))
        likes.append(labelled.like)
        theirs.append(expected["score"])
        ours.append(found["score"])
    pairs = [(tensorflow.timed(f), functools.partial(served, f)) for f in timed_requests(data)]
    for pair in pairs[:10]:  # warm up both
        for call in pair:
            call()
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(TIMED_REQUESTS):
        for into, call in zip(seconds, pairs[i % len(pairs)], strict=True):
            start = time.perf_counter()
            call()
            into.append(time.perf_counter() - start)
    like = np.concatenate(likes)
    return Comparison(
        max_abs_error=worst,
        auc_tensorflow=movielens.auc(like, np.concatenate(theirs)),
        auc_served=movielens.auc(like, np.concatenate(ours)),
        tensorflow_s=np.array(seconds[0]),
        served_s=np.array(seconds[1]),
    )


def timed_requests(data: movielens.MovieLens) -> list[Features]:
    """Requests of 1,000 candidates for fifty users."""
    rng = np.random.default_rng(11)
    movies = data.movies.id
    return [
        movielens.request(data, int(user), rng.choice(movies, TIMED_CANDIDATES, replace=False)).features
        for user in rng.choice(data.users.id, 50, replace=False)
    ]


def show(comparison: Comparison) -> None:
    """Prints accuracy and times side by side."""
    table = Table(
        title=f"{TIMED_REQUESTS} requests of {TIMED_CANDIDATES:,} candidates, alternately",
        title_justify="left",
    )
    for column in ("", "p50 ms", "p99 ms", "test AUC"):
        table.add_column(column, justify="right" if column else "left")
    rows = (
        ("TensorFlow, in process", comparison.tensorflow_s, comparison.auc_tensorflow),
        ("jaxrank, over gRPC", comparison.served_s, comparison.auc_served),
    )
    for name, seconds, auc in rows:
        p50, p99 = np.percentile(seconds * 1e3, [50, 99])
        table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", f"{auc:.6f}")
    console.print(table)
    console.print(f"largest difference of any score: {comparison.max_abs_error:.1e}")


def write_figures(path: Path, comparison: Comparison, convert_s: float, compile_s: float) -> None:
    """The figures of DESIGN's `first_light` suite."""
    ratio = comparison.served_s / comparison.tensorflow_s
    p50 = float(np.median(comparison.served_s) / np.median(comparison.tensorflow_s))
    lo, hi = np.percentile(ratio, [5, 95])
    tf_ms, ours_ms = np.median(comparison.tensorflow_s) * 1e3, np.median(comparison.served_s) * 1e3
    figures = [
        Figure(
            name="max_abs_error",
            value=comparison.max_abs_error,
            unit="score",
            note="any output, served vs TensorFlow",
        ),
        Figure(
            name="auc_difference",
            value=abs(comparison.auc_tensorflow - comparison.auc_served),
            unit="AUC",
            note=f"TensorFlow {comparison.auc_tensorflow:.6f}, served {comparison.auc_served:.6f}",
        ),
        Figure(
            name="served_p50_over_tf_p50",
            value=p50,
            unit="ratio",
            lo=float(lo),
            hi=float(hi),
            runs=len(ratio),
            note=f"{TIMED_CANDIDATES} candidates; served {ours_ms:.2f} ms, TensorFlow {tf_ms:.2f} ms",
        ),
        Figure(name="convert_s", value=convert_s, unit="s", note="jaxrank convert, whole process"),
        Figure(
            name="compile_s", value=compile_s, unit="s", note="jaxrank compile for cpu, cuda:sm_80 and vulkan"
        ),
    ]
    command = re.sub(r"^.*/", "", sys.executable) + " -m examples.movielens.demo"
    write_results(path, "first_light", command, figures)


if __name__ == "__main__":
    main()
