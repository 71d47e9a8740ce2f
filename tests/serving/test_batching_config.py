"""TensorFlow Serving's batching parameters: its documented example, what has no meaning here, bad files."""

from pathlib import Path

import pytest

from serving.batching_config import BatchingParameters, read_batching_parameters
from serving.model_config import ConfigError
from serving.scheduling import SchedulingOptions

DOCUMENTED = """
max_batch_size { value: 128 }
batch_timeout_micros { value: 500 }
max_enqueued_batches { value: 10 }
num_batch_threads { value: 8 }
"""


def test_the_documented_example(tmp_path: Path) -> None:
    path = tmp_path / "batching.txt"
    path.write_text(DOCUMENTED)
    found = read_batching_parameters(path, SchedulingOptions())
    assert found.options == SchedulingOptions(max_waiting=1280, max_delay=0.0005, max_shared_rows=128)
    assert found.ignored == ["num_batch_threads has no meaning here: calls that run at once are --streams"]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (
            "max_batch_size { value: 100 } max_enqueued_batches { value: 2000000000 }",
            SchedulingOptions(max_waiting=4096, max_shared_rows=100),
            "max_enqueued_batches asks for 200000000000 requests that wait; 4096 may",
        ),
        (
            "max_batch_size { value: 8192 }",
            SchedulingOptions(max_shared_rows=5000),
            "max_batch_size is 8192; 5000 candidates may share a call",
        ),
        (
            "batch_timeout_micros { value: 5000000 }",
            SchedulingOptions(max_delay=1.0),
            "batch_timeout_micros is 5000000; a request waits 1000000 at most",
        ),
    ],
)
def test_more_than_there_is(text: str, options: SchedulingOptions, words: str, tmp_path: Path) -> None:
    """A file of TensorFlow Serving is taken as it is."""
    path = tmp_path / "batching.txt"
    path.write_text(text)
    assert read_batching_parameters(path, SchedulingOptions()) == BatchingParameters(options, [], [words])


def test_what_is_not_given_stays(tmp_path: Path) -> None:
    path = tmp_path / "batching.txt"
    path.write_text("allowed_batch_sizes: 8 allowed_batch_sizes: 16 pad_variable_length_inputs: true")
    defaults = SchedulingOptions(5, 0.25, 64)
    found = read_batching_parameters(path, defaults)
    assert found.options == defaults
    assert [note.split()[0] for note in found.ignored] == [
        "allowed_batch_sizes",
        "pad_variable_length_inputs",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 0 }", r"max_batch_size is 0; it may be 1 or more"),
        ("batch_timeout_micros { value: -1 }", r"batch_timeout_micros is -1; it may be 0 or more"),
        (
            "max_batch_sizes { value: 1 }",
            r"is not a text protobuf of BatchingParameters: 1:1 .*max_batch_sizes",
        ),
        (None, "cannot be read"),
    ],
)
def test_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "batching.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_batching_parameters(path, SchedulingOptions())
