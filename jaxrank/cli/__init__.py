"""The `jaxrank` command: one file for each subcommand. TensorFlow, JAX and the server are imported only by
the command that uses them."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console

from jaxrank.cli.bench import add_to as add_bench
from jaxrank.cli.compile import compile_command
from jaxrank.cli.convert import CONVERT_EXAMPLES, convert_command
from jaxrank.cli.doctor import doctor
from jaxrank.cli.explain import EXPLAIN_EXAMPLES, explain_command
from jaxrank.cli.inspect import inspect_command
from jaxrank.cli.serve import serve
from jaxrank.cli.serve_flags import ServeCommand
from jaxrank.cli.tables import add_to as add_tables
from jaxrank.errors import JaxrankError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Serve TensorFlow ranking models without TensorFlow: convert, compile, inspect, explain, serve, "
    "tables, doctor, bench.",
)


def _reporting_errors(command: Callable[..., Any], extra: str = "") -> Callable[..., Any]:
    """Errors that jaxrank raises on purpose are messages, not tracebacks. A package that is missing is one of
    `extra`, or of the first extra that has it."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except JaxrankError as error:
            Console(stderr=True).print(f"[bold red]error:[/] {type(error).__name__}", highlight=False)
            print(error, file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in _EXTRAS:
                raise
            wanted = extra or _EXTRAS[(error.name or "").split(".")[0]]
            print(
                f"error: {error.name} is not installed; run: pip install 'jaxrank[{wanted}]'", file=sys.stderr
            )
            raise typer.Exit(1) from error

    return run


_EXTRAS = {
    "tensorflow": "convert",
    "tf2onnx": "convert",
    "onnx": "convert",
    "jax": "compile",
    "flax": "compile",
    "iree": "compile",
    "matplotlib": "compile",
    "rocksdict": "tiers",
    "redis": "tiers",
    "onnxruntime": "bench",
    "openvino": "bench",
}

app.command("convert", epilog=CONVERT_EXAMPLES)(_reporting_errors(convert_command))
app.command("compile")(_reporting_errors(compile_command))
app.command("inspect")(_reporting_errors(inspect_command))
app.command("explain", epilog=EXPLAIN_EXAMPLES)(_reporting_errors(explain_command))
app.command("serve", cls=ServeCommand)(_reporting_errors(serve))
app.command("doctor")(_reporting_errors(doctor))
add_tables(app, _reporting_errors)
add_bench(app, _reporting_errors)
