"""TensorFlow Serving's batching parameters, as options of the scheduler."""

from dataclasses import replace
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
_ROWS = 5000


def read_batching_parameters(path: Path, defaults: SchedulingOptions) -> tuple[SchedulingOptions, list[str]]:
    """The options that a text-proto file asks for, and a note for each field that has no meaning here or asks
    for too much.

    A batch's size counts rows, as in TensorFlow Serving; what may wait is its number of batches times that.

    Raises `ConfigError` for a file that does not parse or a number out of range.
    """
    found = read_text_proto(path, pb.BatchingParameters)
    options, notes = defaults, list[str]()
    if found.HasField("max_batch_size"):
        options = replace(options, max_shared_rows=_bounded(path, "max_batch_size", found, 1, _ROWS))
    if found.HasField("batch_timeout_micros"):
        micros = _bounded(path, "batch_timeout_micros", found, 0, 1_000_000)
        options = replace(options, max_delay=micros / 1e6)
    if found.HasField("max_enqueued_batches"):
        batches = _bounded(path, "max_enqueued_batches", found, 1, 1_000_000)
        waiting = batches * options.max_shared_rows
        options = replace(options, max_waiting=min(waiting, MAX_WAITING))
        if waiting > MAX_WAITING:
            notes.append(f"max_enqueued_batches asks for {waiting} requests that wait; {MAX_WAITING} may")
    given = {field.name for field, _ in found.ListFields()}
    notes += [f"{name} has no meaning here: {_IGNORED[name]}" for name in _IGNORED if name in given]
    return options, notes


def _bounded(path: Path, name: str, found: pb.BatchingParameters, least: int, most: int) -> int:
    value = getattr(found, name).value
    if not least <= value <= most:
        raise ConfigError(f"{path}: {name} is {value}; it may be {least} to {most}")
    return value
