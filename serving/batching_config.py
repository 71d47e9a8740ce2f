"""TensorFlow Serving's batching parameters, as options of the scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from serving.model_config import ConfigError, read_text_proto
from serving.scheduling import MAX_WAITING, SchedulingOptions
from serving.wire import server_config_pb2 as pb

_IGNORED = {
    "num_batch_threads": "calls that run at once are --streams",
    "thread_pool_name": "all models of a device share its streams",
    "allowed_batch_sizes": "one module takes any number of candidates, and nothing is padded to a size",
    "pad_variable_length_inputs": "requests that share a call are not made equally long",
    "enable_large_batch_splitting": "large requests are always split over the streams",
    "max_execution_batch_size": "large requests are always split over the streams",
}
_ROWS, _MICROS = 5000, 1_000_000
"""Most that are taken of `max_batch_size` and `batch_timeout_micros`."""


@dataclass(frozen=True)
class BatchingParameters:
    """A file's options for the scheduler; `ignored` has a note for each field that has no meaning here,
    `bounded` for each that asks for more than there is."""

    options: SchedulingOptions
    ignored: Sequence[str] = ()
    bounded: Sequence[str] = ()


def read_batching_parameters(path: Path, defaults: SchedulingOptions) -> BatchingParameters:
    """What a text-proto file asks for, at most as much of it as there may be.

    A batch's size counts rows, as in TensorFlow Serving; what may wait is its number of batches times that.

    Raises `ConfigError` for a file that does not parse or a number that TensorFlow Serving refuses, too.
    """
    found = read_text_proto(path, pb.BatchingParameters)
    options, bounded = defaults, list[str]()
    if found.HasField("max_batch_size"):
        rows = _at_least(1, path, "max_batch_size", found)
        options = replace(options, max_shared_rows=min(rows, _ROWS))
        if rows > _ROWS:
            bounded.append(f"max_batch_size is {rows}; {_ROWS} candidates may share a call")
    if found.HasField("batch_timeout_micros"):
        micros = _at_least(0, path, "batch_timeout_micros", found)
        options = replace(options, max_delay=min(micros, _MICROS) / 1e6)
        if micros > _MICROS:
            bounded.append(f"batch_timeout_micros is {micros}; a request waits {_MICROS} at most")
    if found.HasField("max_enqueued_batches"):
        waiting = _at_least(1, path, "max_enqueued_batches", found) * options.max_shared_rows
        options = replace(options, max_waiting=min(waiting, MAX_WAITING))
        if waiting > MAX_WAITING:
            bounded.append(f"max_enqueued_batches asks for {waiting} requests that wait; {MAX_WAITING} may")
    given = {field.name for field, _ in found.ListFields()}
    ignored = [f"{name} has no meaning here: {_IGNORED[name]}" for name in _IGNORED if name in given]
    return BatchingParameters(options, ignored, bounded)


def _at_least(least: int, path: Path, name: str, found: pb.BatchingParameters) -> int:
    value = getattr(found, name).value
    if value < least:
        raise ConfigError(f"{path}: {name} is {value}; it may be {least} or more")
    return value
