"""tensorflow_model_server's flags as `jaxrank serve` reads them."""

import pytest
import typer
from typer.testing import CliRunner

from jaxrank.cli import app
from jaxrank.cli.serve_flags import UNUSED, UNUSED_SWITCHES, translate


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("--port=8500 --rest_api_port 8501", "--port=8500 --rest-api-port 8501"),
        ("--model_base_path=/models/a_b=c", "--model-base-path=/models/a_b=c"),
        ("--model_name my_model", "--model-name my_model"),
        ("--rest_api_enable_cors_support=true", "--rest-api-enable-cors-support"),
        ("--rest_api_enable_cors_support", "--rest-api-enable-cors-support"),
        ("--rest_api_enable_cors_support=False models", "models"),
        ("--enable_model_warmup=false --canary=a=0.1", "--no-enable-model-warmup --canary=a=0.1"),
        ("--enable_model_warmup", "--enable-model-warmup"),
        ("models -- --model_name=x", "models -- --model_name=x"),
        (
            "--load_retry_interval_micros -1 --model_name=--x",
            "--load-retry-interval-micros -1 --model-name=--x",
        ),
    ],
)
def test_both_spellings(given: str, found: str) -> None:
    assert translate(given.split()) == (found.split(), [])


def test_a_flag_without_a_meaning_is_taken_and_explained() -> None:
    args = (
        "--tensorflow_session_parallelism=4 --grpc_max_threads 8 --use_tflite_model --use_tflite_model=true m"
    )
    found, notes = translate(args.split())
    assert found == ["m"]
    assert [note.split()[0] for note in notes] == [
        "--tensorflow-session-parallelism",
        "--grpc-max-threads",
        "--use-tflite-model",
        "--use-tflite-model",
    ]
    assert all("has no effect: " in note for note in notes)


def test_no_argument_is_lost() -> None:
    """A switch has no value, and another flag is none."""
    found, _ = translate(["--enable_per_model_batching_parameters", "--ssl_config_file=x", "m"])
    assert found == ["--ssl-config-file=x", "m"]
    found, _ = translate(["--mixed_precision", "bfloat16", "--ssl_config_file=x", "m"])
    assert found == ["--ssl-config-file=x", "m"]
    with pytest.raises(typer.BadParameter, match="--grpc-max-threads needs a value, and --port=1 follows"):
        translate(["--grpc_max_threads", "--port=1"])
    with pytest.raises(typer.BadParameter, match="--mixed-precision needs a value, and nothing follows"):
        translate(["--mixed_precision"])


def test_an_option_is_no_value_of_another() -> None:
    done = CliRunner().invoke(app, ["serve", "m", "--grpc_socket_path", "--ssl_config_file=/x"])
    assert done.exit_code == 2
    assert "--grpc-socket-path needs a value" in done.output


def test_every_unused_flag() -> None:
    for name in UNUSED:
        assert translate([f"--{name.replace('-', '_')}=x", "m"])[0] == ["m"]
    for name in UNUSED_SWITCHES:
        assert translate([f"--{name.replace('-', '_')}=false", "m"])[0] == ["m"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--use_alts_credentials=true", "not supported"),
        ("--use_alts_credentials", "not supported"),
        ("--enable_batching=yes", "give true or false"),
    ],
)
def test_refused(given: str, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        translate([given])
