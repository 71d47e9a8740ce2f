"""A server under too much load, whose model is replaced all the time: `python -m bench soak BUNDLE`.

The rate that the server answers is measured first. Then requests arrive at 1.5 times that rate (Poisson),
each with a deadline, and every 20 seconds a new version takes over. The requests are the bundle's recorded
ones, and every answer is compared with TensorFlow's that lie beside them. Several bundles take turns as
versions, and an answer is compared with those of the version that gave it.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench.destination import add_out, destination
from bench.results import Figure, suite_command, write_results
from jaxrank.bundle import read_manifest
from jaxrank.certificate import Example, load_examples
from serving.client import PredictClient
from serving.wire import predict_pb2 as pb
from serving.wire.codec import decode, encode_content
from serving.wire.reflection import PREDICTION_SERVICE

RESULTS = Path("bench/results/soak.json")
_MINUTES = 10.0
LOAD = 1.5
DEADLINE_SECONDS = 0.5
SWAP_SECONDS = 20.0
MOST_ROWS = 1000
MODEL = "soaked"
_SERVER = "from jaxrank.cli import app; app()"
_WARM_SECONDS = 5.0
_AT_ONCE = 16

Code = grpc.StatusCode
REFUSALS = (Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED)


@dataclass(frozen=True)
class Subject:
    """A bundle as the client sees it: requests without a version, and TensorFlow's answers."""

    bundle: Path
    requests: tuple[bytes, ...]
    expected: tuple[dict[str, np.ndarray], ...]
    tolerance: float


@dataclass
class Tally:
    """What became of the requests. Written by gRPC's threads."""

    statuses: Counter = field(default_factory=Counter)
    wrong: int = 0
    versions: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def subject(bundle: Path) -> Subject:
    """The recorded requests of a bundle, up to `MOST_ROWS` candidates each."""
    manifest = read_manifest(bundle)
    examples = [e for e in load_examples(bundle) if _rows(e) <= MOST_ROWS]
    most = max(map(_rows, examples))
    examples = [e for e in examples if _rows(e) == most]
    tolerance = manifest.certificate.tolerance
    outputs = tuple(dict(e.outputs) for e in examples)
    return Subject(bundle, tuple(map(_request, examples)), outputs, tolerance)


def _rows(example: Example) -> int:
    return max(len(value) for value in example.outputs.values())


def _request(example: Example) -> bytes:
    request = pb.PredictRequest(model_spec=pb.ModelSpec(name=MODEL))
    for name, value in example.features.items():
        request.inputs[name].CopyFrom(encode_content(value))
    return request.SerializeToString()


@contextmanager
def _server(models: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    command = [sys.executable, "-c", _SERVER, "serve", str(models), "--host", "127.0.0.1", "--port", "0"]
    command += ["--poll-seconds", "0.5"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(filter(None, (re.search(r"serving on (\S+): ", line) for line in process.stderr)))[1]
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield process, address
        finally:
            process.terminate()


class Client:
    """Sends requests and checks answers."""

    def __init__(self, address: str, subjects: Sequence[Subject]):
        self._subjects = subjects
        self._client = PredictClient(address)
        self._call = self._client.channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")

    def send(self, number: int, tally: Tally, done: Callable[[], None] = lambda: None) -> None:
        """Sends one request and returns; the answer is counted when it comes."""
        requests = self._subjects[0].requests
        index = number % len(requests)
        call = self._call.future(requests[index], timeout=DEADLINE_SECONDS)

        def answered(call: grpc.Future) -> None:
            code = call.code()  # type: ignore[attr-defined]
            version, right = self.check(index, call.result()) if code is Code.OK else (0, True)
            with tally.lock:
                tally.statuses[code] += 1
                tally.wrong += not right
                tally.versions.add(version)
            done()

        call.add_done_callback(answered)

    def check(self, index: int, data: bytes) -> tuple[int, bool]:
        """The version that answered, and whether its scores are right."""
        response = pb.PredictResponse.FromString(data)
        version = response.model_spec.version.value
        asked = self._subjects[version % len(self._subjects)]
        right = all(
            np.allclose(decode(name, response.outputs[name]), value, rtol=0, atol=asked.tolerance)
            for name, value in asked.expected[index].items()
        )
        return version, right

    def close(self) -> None:
        self._client.close()


def _capacity(client: Client, seconds: float) -> float:
    """Requests a second that are answered when some always wait."""
    tally, free = Tally(), threading.Semaphore(_AT_ONCE)
    ends, sent = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        free.acquire()
        client.send(sent, tally, free.release)
        sent += 1
    for _ in range(_AT_ONCE):
        free.acquire()
    return tally.statuses[Code.OK] / seconds


def _anonymous_mib(process: subprocess.Popen) -> float:
    """Memory that is the process's own: mapped files are not counted."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def _install(subjects: Sequence[Subject], models: Path, version: int) -> None:
    """Gives the server a version, and takes those away that are two behind."""
    model = models / MODEL
    model.mkdir(exist_ok=True)
    shutil.copytree(subjects[version % len(subjects)].bundle, models / ".next")
    (models / ".next").rename(model / str(version))
    for old in model.iterdir():
        if int(old.name) < version - 1:
            shutil.rmtree(old)


def soak(subjects: Sequence[Subject], minutes: float, seed: int = 0) -> list[Figure]:
    """Runs the soak and returns its figures. Raises `RuntimeError` if the server ends."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as work:
        models = Path(work)
        _install(subjects, models, 1)
        with _server(models) as (process, address):
            client = Client(address, subjects)
            _capacity(client, _WARM_SECONDS)
            rate = _capacity(client, _WARM_SECONDS)
            tally, memory, version, sent = Tally(), [], 1, 0
            began = time.monotonic()
            ends, arrives, swaps_at, looks_at = began + minutes * 60, began, began + SWAP_SECONDS, began
            with _progress() as progress:
                bar = progress.add_task(f"{LOAD * rate:.0f} requests/s", total=minutes * 60)
                while (now := time.monotonic()) < ends:
                    if process.poll() is not None:
                        raise RuntimeError(f"the server ended with {process.returncode}")
                    if now >= swaps_at:
                        version, swaps_at = version + 1, swaps_at + SWAP_SECONDS
                        _install(subjects, models, version)
                    if now >= looks_at:
                        memory.append(_anonymous_mib(process))
                        looks_at += 1.0
                        progress.update(bar, completed=now - began)
                    while arrives <= now:
                        client.send(sent, tally)
                        sent += 1
                        arrives += draw.expovariate(LOAD * rate)
                    time.sleep(max(0.0, min(arrives, looks_at) - time.monotonic()))
            while sum(tally.statuses.values()) < sent:
                time.sleep(0.05)
            client.close()
    return _figures(tally, memory, minutes, rate)


def _figures(tally: Tally, memory: Sequence[float], minutes: float, rate: float) -> list[Figure]:
    answered = tally.statuses[Code.OK]
    refused = sum(tally.statuses[code] for code in REFUSALS)
    others = {code.name: n for code, n in tally.statuses.items() if code not in (Code.OK, *REFUSALS)}
    quarter = max(1, len(memory) // 4)
    grown = float(np.median(memory[-quarter:]) - np.median(memory[quarter : 2 * quarter]))
    swaps = len(tally.versions - {0}) - 1
    return [
        Figure(name="soak_minutes", value=minutes, unit="minutes"),
        Figure(name="soak_wrong_scores", value=tally.wrong, unit="answers", runs=answered),
        Figure(name="soak_answered", value=answered, unit="requests"),
        Figure(name="soak_refused", value=refused, unit="requests", note="by status and deadline"),
        Figure(name="soak_failed", value=sum(others.values()), unit="requests", note=str(others or "")),
        Figure(name="soak_swaps", value=swaps, unit="versions", note="that answered, but for the first"),
        Figure(
            name="soak_goodput", value=answered / (minutes * 60 * rate), unit="of the rate without overload"
        ),
        Figure(
            name="soak_memory_growth",
            value=grown,
            unit="MiB",
            lo=min(memory),
            hi=max(memory),
            runs=len(memory),
            note="anonymous memory, median of the last quarter over that of the second one",
        ),
    ]


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console)


def main(arguments: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__)
    parser.add_argument(
        "bundles", type=Path, nargs="+", metavar="BUNDLE", help="compiled, with one signature"
    )
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="(%(default)g)")
    add_out(parser, RESULTS)
    options = parser.parse_args(arguments)
    figures = soak([subject(bundle) for bundle in options.bundles], options.minutes)
    named = [bundle.name for bundle in options.bundles]
    command = suite_command("soak", [*named, "--minutes", f"{options.minutes:g}"])
    write_results(
        destination(options.out, RESULTS, part=options.minutes < _MINUTES), "soak", command, figures
    )
    for figure in figures:
        Console().print(f"{figure.name:20} {figure.value:12.4g} {figure.unit} {figure.note}")
    if any(f.value for f in figures if f.name in ("soak_wrong_scores", "soak_failed")):
        raise SystemExit(1)
