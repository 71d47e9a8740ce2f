"""`jaxrank` in the tests' own process: starting one imports TensorFlow and JAX, for seconds."""

from dataclasses import dataclass

from typer.testing import CliRunner

from jaxrank.cli import app


@dataclass(frozen=True)
class Done:
    """What a command left behind, as `subprocess.CompletedProcess` says it."""

    returncode: int
    stdout: str
    stderr: str


def jaxrank(*arguments: object, columns: int = 250) -> Done:
    """Runs the command. An exception that would be a traceback is raised."""
    environment = {"COLUMNS": str(columns)}
    found = CliRunner().invoke(app, list(map(str, arguments)), env=environment, prog_name="jaxrank")
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Done(found.exit_code, found.stdout, found.stderr)
