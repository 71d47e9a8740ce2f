"""A server beside the one it is to take the place of, on the same requests: `python -m bench shadow`.

Both servers speak TensorFlow Serving's protocol and have the model under the same name; either may be
TensorFlow Serving. Each request goes to both, one after the other, in turns. Reported: the largest error of a
score, how many of the best candidates stay the best (top-k overlap), pairs that are ordered the other way
round, latency, and failures: answers that only the incumbent gives, outputs that are missing or of another
shape or type.

Exit code 0: within the bounds. 1: beyond one of them. 2: not compared, as a server is not reachable, or there
is nothing to send, or not to the end, as a server went away: what was compared before that is shown and
written.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from rich.table import Table

from bench.results import Figure, suite_command, write_results
from bench.timing import Timing, mean_ratio
from bench.workloads import read_traffic
from jaxrank import bundle as files
from jaxrank import ranking
from jaxrank.certificate import load_examples
from jaxrank.cli.console import results_console
from jaxrank.errors import JaxrankError
from serving.client import PredictClient
from serving.errors import InvalidRequestError
from serving.wire import predict_pb2 as pb
from serving.wire.codec import decode, encode_content
from serving.wire.reflection import PREDICTION_SERVICE

INCUMBENT, CANDIDATE = "incumbent", "candidate"
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_WARM = 3
"""Untimed answers of each."""

Arrays = dict[str, np.ndarray]


class NotCompared(JaxrankError):
    """Nothing was compared."""


@dataclass
class Differences:
    """Of the candidate's answers from the incumbent's."""

    top_k: int
    tolerance: float
    compared: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """What was wrong, and how often."""
    unasked: Counter[str] = field(default_factory=Counter)
    """Requests that the incumbent refused, by its status."""
    errors: dict[str, float] = field(default_factory=dict)
    """The largest of each output: absolute up to 1, relative beyond."""
    overlaps: list[float] = field(default_factory=list)
    """Of the best `top_k` of each request and column of scores."""
    inverted: int = 0
    ordered: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {INCUMBENT: [], CANDIDATE: []})
    stopped: str = ""
    """Why the rest of the requests was not sent."""

    @property
    def error(self) -> float:
        return max(self.errors.values(), default=0.0)

    @property
    def overlap(self) -> float:
        """Mean; 1.0 where no output ranks anything."""
        return float(np.mean(self.overlaps)) if self.overlaps else 1.0

    def compare(self, expected: Arrays, found: Arrays) -> None:
        """One answer of both."""
        self.compared += 1
        for name, want in expected.items():
            got = found.get(name)
            if got is None:
                self.failures[f"output {name!r} is missing"] += 1
            elif (got.shape, got.dtype) != (want.shape, want.dtype):
                told = f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
                self.failures[f"output {name!r} is {told}"] += 1
            elif want.dtype == object:
                if differ := int((want != got).sum()):
                    self.failures[f"output {name!r} has other strings"] += differ
            else:
                self._scores(name, want.astype(np.float64), got.astype(np.float64))

    def _scores(self, name: str, want: np.ndarray, got: np.ndarray) -> None:
        same = (want == got) | (np.isnan(want) & np.isnan(got))
        with np.errstate(invalid="ignore"):
            errors = np.where(same, 0.0, np.abs(got - want) / np.maximum(np.abs(want), 1.0))
        worst = float(np.where(np.isnan(errors), np.inf, errors).max(initial=0.0))
        self.errors[name] = max(self.errors.get(name, 0.0), worst)
        if want.ndim == 0 or len(want) < 2:
            return
        for column, other in zip(want.reshape(len(want), -1).T, got.reshape(len(want), -1).T, strict=True):
            self.overlaps.append(ranking.top_overlap(column, other, self.top_k))
            inverted, ordered = ranking.inversions(column, other, self.tolerance)
            self.inverted, self.ordered = self.inverted + inverted, self.ordered + ordered

    def beyond(self, min_top_k: float) -> list[str]:
        """The bounds that do not hold."""
        found = [f"{count} times: {what}" for what, count in self.failures.items()]
        if not self.error <= self.tolerance:
            found.append(f"scores differ by {self.error:.2e}, more than {self.tolerance:.0e}")
        if self.overlap < min_top_k:
            found.append(f"top-{self.top_k} overlap is {self.overlap:.5f}, less than {min_top_k:g}")
        return found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    options = _arguments(argv)
    try:
        requests = read_requests(options.requests, options.bundle, options.model, options.number)
        clients = {
            name: _connected(address)
            for name, address in ((INCUMBENT, options.incumbent), (CANDIDATE, options.candidate))
        }
        found = shadow(clients, requests, Differences(options.top_k, options.max_error))
    except (JaxrankError, OSError) as error:
        print(f"not compared: {error}")
        raise SystemExit(2) from error
    measured = figures(found)
    if options.out is not None:
        write_results(options.out, "shadow", suite_command("shadow", argv or ()), measured)
    _print(measured, found)
    beyond = found.beyond(options.min_top_k)
    for line in beyond:
        print(f"beyond its bound: {line}")
    if found.stopped:
        print(f"not compared to the end: {found.stopped}")
        raise SystemExit(2)
    if beyond:
        raise SystemExit(1)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench shadow",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m bench shadow --incumbent tfs:8500 --candidate new:8500 --requests recorded.tfrecord\n"
        "  python -m bench shadow --incumbent old:8500 --candidate new:8500 --bundle models/ranker/1",
    )
    parser.add_argument("--incumbent", required=True, metavar="HOST:PORT", help="what answers today")
    parser.add_argument("--candidate", required=True, metavar="HOST:PORT", help="what is to take its place")
    parser.add_argument(
        "--requests", type=Path, metavar="FILE",
        help="recorded ones: jaxrank serve --record, or a TFRecord file of PredictionLog",
    )  # fmt: skip
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR",
        help="of the model: tells which inputs are the request's, and has requests if there are no recorded",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="NAME", help="on both servers (that of the requests or the bundle)"
    )
    parser.add_argument("--number", type=int, default=500, metavar="N", help="requests at most (%(default)s)")
    parser.add_argument("--max-error", type=float, default=1e-5, metavar="E", help="of a score (%(default)s)")
    parser.add_argument(
        "--min-top-k", type=float, default=0.999, metavar="SHARE",
        help="of the incumbent's best K that must stay among them, on average (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--top-k", type=int, default=10, metavar="K", help="(%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="figures, as JSON")
    options = parser.parse_args(argv)
    if options.requests is None and options.bundle is None:
        parser.error("give --requests FILE, or --bundle DIR to draw requests of its examples")
    if options.top_k < 1 or options.number < 1:
        parser.error("--top-k and --number are at least 1")
    return options


def read_requests(
    recorded: Path | None, bundle: Path | None, model: str | None, most: int
) -> list[pb.PredictRequest]:
    """What to send, each with the model's name. Raises `WorkloadError`, `BundleError` where there is no
    bundle, or `NotCompared` for one without examples."""
    from bench.user_models import model_name

    if recorded is not None:
        requests = read_traffic(recorded, most).requests
    else:
        assert bundle is not None
        requests = list(_examples(bundle, most))
        model = model or model_name(bundle)
    for request in requests:
        request.model_spec.name = model or request.model_spec.name
    if bundle is not None:
        return [_repeated(request, bundle) for request in requests]
    return requests


def _examples(bundle: Path, most: int) -> Iterator[pb.PredictRequest]:
    try:
        manifest = files.read_manifest(bundle)
        examples = load_examples(bundle, most=most) if files.EXAMPLES in manifest.files else []
    except (JaxrankError, OSError) as error:
        raise NotCompared(str(error)) from error
    if not examples:
        raise NotCompared(f"{bundle} has no examples; give recorded requests with --requests")
    for example in examples:
        request = pb.PredictRequest(model_spec=pb.ModelSpec(signature_name=manifest.signature.name))
        for name, value in example.features.items():
            request.inputs[name].CopyFrom(encode_content(value))
        yield request


def _repeated(request: pb.PredictRequest, bundle: Path) -> pb.PredictRequest:
    """As TensorFlow's signature takes it: `jaxrank serve --record` writes what is the request's once."""
    from converters.examples import repeat_request_rows

    signature = files.read_manifest(bundle).signature
    features = {name: decode(name, tensor) for name, tensor in request.inputs.items()}
    if odd := set(features) ^ {t.name for t in signature.inputs}:
        raise NotCompared(f"the requests are not to {bundle}: they differ in {', '.join(sorted(odd))}")
    return _with_inputs(request, repeat_request_rows(signature, features))


def _with_inputs(request: pb.PredictRequest, features: Mapping[str, np.ndarray]) -> pb.PredictRequest:
    made = pb.PredictRequest(model_spec=request.model_spec, output_filter=request.output_filter)
    for name, value in features.items():
        made.inputs[name].CopyFrom(encode_content(value))
    return made


def _connected(address: str) -> PredictClient:
    client = PredictClient(address)
    try:
        grpc.channel_ready_future(client.channel).result(timeout=_CONNECT_SECONDS)
    except grpc.FutureTimeoutError:
        raise NotCompared(f"no server answers at {address} within {_CONNECT_SECONDS:g} s") from None
    return client


def shadow(
    clients: Mapping[str, PredictClient], requests: Sequence[pb.PredictRequest], found: Differences
) -> Differences:
    """Sends every request to both servers and compares the answers, until a server goes away. Raises
    `NotCompared` where that is before the first comparison, or the incumbent answers nothing."""
    calls = {
        name: client.channel.unary_unary(
            f"/{PREDICTION_SERVICE}/Predict",
            pb.PredictRequest.SerializeToString,
            pb.PredictResponse.FromString,
        )
        for name, client in clients.items()
    }
    for call in calls.values():
        for request in requests[:_WARM]:
            _answer(call, request)
    for number, request in enumerate(requests):
        order = (INCUMBENT, CANDIDATE) if number % 2 else (CANDIDATE, INCUMBENT)
        answers, seconds = {}, {}
        for name in order:
            try:
                answers[name], seconds[name] = _answer(calls[name], request)
            except NotCompared as error:
                if not found.compared and not found.failures:
                    raise
                found.stopped = f"{error}, after {number} of {len(requests)} requests"
                return found
        expected, got = answers[INCUMBENT], answers[CANDIDATE]
        if isinstance(expected, str):
            found.unasked[expected] += 1
        elif isinstance(got, str):
            found.failures[f"the candidate answers {got}"] += 1
        else:
            found.compare(expected, got)
            for name in order:
                found.seconds[name].append(seconds[name])
    if found.unasked.total() == len(requests):
        raise NotCompared(f"the incumbent answers none of {len(requests)} requests: {_counts(found.unasked)}")
    return found


def _answer(
    call: Callable[..., pb.PredictResponse], request: pb.PredictRequest, *, again: bool = False
) -> tuple[Arrays | str, float]:
    """The outputs, or the status and message, or why they cannot be read; and the seconds that it took.
    Raises `NotCompared` where the server is gone: it is asked once more, and has `_CONNECT_SECONDS` to come
    back."""
    start = time.perf_counter()
    try:
        response = call(request, timeout=_ANSWER_SECONDS)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAVAILABLE and not again:  # type: ignore[attr-defined]
            time.sleep(_CONNECT_SECONDS)
            return _answer(call, request, again=True)
        code, details = error.code(), error.details()  # type: ignore[attr-defined]
        if code == grpc.StatusCode.UNAVAILABLE:
            raise NotCompared(f"a server is not available: {details}") from error
        told = (details or "").splitlines()[0][:200] if details else ""
        return f"{code.name}: {told}", time.perf_counter() - start
    seconds = time.perf_counter() - start
    try:
        return {name: decode(name, tensor) for name, tensor in response.outputs.items()}, seconds
    except InvalidRequestError as error:
        return f"what cannot be read: {error}", seconds


def _counts(counted: Counter[str]) -> str:
    return "; ".join(f"{count} {what}" for what, count in counted.most_common(5))


def figures(found: Differences) -> list[Figure]:
    """The suite's figures."""
    runs = found.compared
    of = f"{runs} requests"
    made = [
        Figure(name="compared", value=runs, unit="requests", note=_counts(found.unasked)),
        Figure(name="failures", value=found.failures.total(), unit="answers", note=_counts(found.failures)),
        Figure(name="max_error", value=found.error, unit="score", note="absolute up to 1, relative beyond"),
        Figure(name=f"top{found.top_k}_overlap", value=found.overlap, unit="share", runs=len(found.overlaps)),
        Figure(name="inversions", value=found.inverted, unit="pairs", note=f"of {found.ordered} in {of}"),
    ]
    made += [Figure(name=f"max_error/{n}", value=e, unit="score") for n, e in sorted(found.errors.items())]
    if runs:
        times = {name: Timing(np.array(s)[:, None] * 1e3) for name, s in found.seconds.items()}
        for name, timing in times.items():
            for label, share in (("p50", 0.5), ("p99", 0.99)):
                made.append(timing.percentile(share).figure(f"{name}_{label}", "ms", runs))
        ratio = mean_ratio([(times[CANDIDATE], times[INCUMBENT])])
        note = "the candidate's median over the incumbent's, one request at a time"
        made.append(ratio.figure("latency_ratio", "ratio", runs, note))
    return made


def _print(measured: Sequence[Figure], found: Differences) -> None:
    table = Table(title=f"the candidate beside the incumbent, {found.compared} requests")
    for column in ("figure", "value", "interval", "unit", ""):
        table.add_column(column, justify="right" if column in ("value", "interval") else "left")
    for f in measured:
        bounds = "" if f.lo is None or f.hi is None else f"{f.lo:.4g} to {f.hi:.4g}"
        table.add_row(f.name, f"{f.value:.4g}", bounds, f.unit, f.note)
    results_console().print(table)


if __name__ == "__main__":
    main()
