"""Commands of `jaxrank` as processes that are killed."""

import sys

COMMAND = [sys.executable, "-c", "from jaxrank.cli import app; app()"]

_TELLING = """
import importlib, sys
from jaxrank.cli import app

def told(function):
    def run(*arguments, **options):
        print("begins", flush=True)
        found = function(*arguments, **options)
        print("ends", flush=True)
        return found
    return run

for name in sys.argv.pop(1).split(","):
    path, _, function = name.rpartition(".")
    module = importlib.import_module(path)
    setattr(module, function, told(getattr(module, function)))
app()
"""


def telling(*functions: str) -> list[str]:
    """The same command, which prints "begins" before a call of the functions, and "ends" after it: most of a
    short command is Python's start. They are dotted names that the command imports when it runs."""
    return [sys.executable, "-c", _TELLING, ",".join(functions)]
