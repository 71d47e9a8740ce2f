"""TensorFlow's threads in the suite `dense`, chosen before anything is timed.

TensorFlow takes its numbers of threads when it starts and keeps them, and the process that times it beside
the other engines has one TensorFlow. So each setting has a process of its own that holds the same requests of
one model with a request side and of one without. The processes take turns, and the setting in which
TensorFlow and TensorFlow with XLA together take the least time is that of the whole run.
"""

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from bench import dense
from bench.timing import interleaved
from jaxrank.errors import JaxrankError
from serving.cores import usable_cores

CORES = usable_cores()
SIZES = (200, 1000)
_SEED = 4_900
_ERROR = "error:"
"""Begins the answer of a process that cannot make its models; what is wrong with them follows."""


class ThreadsError(JaxrankError):
    """A process in which a setting was tried has ended: often there is something wrong with a model."""


@dataclass(frozen=True)
class Threads:
    """TensorFlow's: of one op, and ops that run at once. One of each kind for each core by default, as
    TensorFlow Serving has."""

    intra: int = CORES
    inter: int = CORES

    def __str__(self) -> str:
        return f"{self.intra} intra-op and {self.inter} inter-op threads"


def limit_tensorflow_threads(threads: Threads) -> None:
    """Before TensorFlow starts. Raises `RuntimeError` where it has started with other threads."""
    import tensorflow as tf

    config = tf.config.threading
    try:
        config.set_intra_op_parallelism_threads(threads.intra)
        config.set_inter_op_parallelism_threads(threads.inter)
    except RuntimeError:  # it runs already; 0 is TensorFlow's word for all cores
        intra, inter = config.get_intra_op_parallelism_threads(), config.get_inter_op_parallelism_threads()
        if Threads(intra or CORES, inter or CORES) != threads:
            raise


def settings(cores: int) -> tuple[Threads, ...]:
    """Those worth trying: TensorFlow's own, one op at a time on all cores, ops beside each other on one core
    each."""
    return tuple(dict.fromkeys((Threads(cores, cores), Threads(cores, 1), Threads(1, cores))))


def fastest(
    arguments: Sequence[str],
    tried: Sequence[Threads] = settings(CORES),
    status: Callable[[str], None] = lambda text: None,
) -> tuple[Threads, str]:
    """The fastest setting for the models of the suite's arguments, and in words how it was found; the first
    one where none is surely faster.

    Raises `ThreadsError`.
    """
    with ExitStack() as stack:
        asked: dict[Threads, Callable[[], None]] = {}
        for threads in tried:
            status(f"TensorFlow with {threads}")
            # One after another: the first makes the models that are not there, for all.
            calls, asked[threads] = stack.enter_context(_trial(threads, arguments))
            if not calls:
                return tried[0], f"{tried[0]}, not tuned: TensorFlow runs none of the models"
        status("TensorFlow's settings in turns")
        times = interleaved({str(t): call for t, call in asked.items()}, rounds=7)
    for name, timing in times.items():
        status(f"{name}: {timing.median:.0f} ms ({timing.lo:.0f} to {timing.hi:.0f})")
    own = times[str(tried[0])]
    faster = [threads for threads in tried[1:] if times[str(threads)].hi < own.lo]
    best = min(faster, key=lambda threads: times[str(threads)].median, default=tried[0])
    return best, f"{best}, the fastest of {len(tried)} settings"


@contextmanager
def _trial(threads: Threads, arguments: Sequence[str]) -> Iterator[tuple[int, Callable[[], None]]]:
    """A process with a setting: the number of its requests, and the call that runs them all once."""
    command = [sys.executable, "-m", "bench.dense_threads", str(threads.intra), str(threads.inter)]
    process = subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def answer() -> int:
        if not (line := stdout.readline()):
            raise ThreadsError(f"TensorFlow with {threads} ended with status {process.wait()}; see above")
        if line.startswith(_ERROR):
            raise ThreadsError(line.removeprefix(_ERROR).strip())
        return int(line)

    def run() -> None:
        with suppress(BrokenPipeError):  # it has ended, and `answer` says so
            stdin.write("\n")
            stdin.flush()
        answer()

    try:
        yield answer(), run
    finally:
        process.communicate()


def main(argv: Sequence[str]) -> None:
    """One setting: `INTRA INTER`, then the suite's arguments. Runs its requests for each line of input."""
    intra, inter, *arguments = argv
    # Answers alone go to the pipe; what libraries print does not.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from converters.tensorflow_logs import import_quietly

    import_quietly()
    limit_tensorflow_threads(Threads(int(intra), int(inter)))
    try:
        calls = _calls(dense.parse(arguments))
    except JaxrankError as error:
        print(_ERROR, " ".join(str(error).split()), file=answers, flush=True)
        raise SystemExit(1) from None
    print(len(calls), file=answers, flush=True)
    for _ in sys.stdin:
        for call in calls:
            call()
        print(len(calls), file=answers, flush=True)


def _calls(arguments: Namespace) -> list[Callable[[], object]]:
    """TensorFlow and TensorFlow with XLA on requests of one model of each kind; what does not run is left
    out, and listed when the suite comes to it."""
    from bench.dense_build import build
    from bench.peers import Task, tensorflow_engine
    from serving.host import HostProgramRunner

    models = {model.request_side: model for model in reversed(dense.models(arguments))}
    calls: list[Callable[[], object]] = []
    for model in models.values():
        try:
            built = build(model, arguments.work, print)
            task, host = Task.of(built), HostProgramRunner(built.bundle, built.manifest)
            most = built.manifest.max_candidates
            for jit_compile in (False, True):
                prepare = tensorflow_engine(task, jit_compile)
                for rows in SIZES:
                    calls.append(prepare(host.run(model.request(min(rows, most), _SEED))))
                    calls[-1]()
        except Exception as error:  # TensorFlow raises whatever it likes
            print(f"{model.name}: {error}")
    return calls


if __name__ == "__main__":
    main(sys.argv[1:])
