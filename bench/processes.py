"""A measurement in a process of its own.

How memory lies in a process, which pages it got and what it loaded before are the same for all that one
process measures, and other ones in the next. What is measured again in fresh processes shows how much that
matters (`bench.timing.over_processes`).
"""

import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from jaxrank.errors import JaxrankError

_SPAWN = multiprocessing.get_context("spawn")
T = TypeVar("T")
Status = Callable[[str], None]


class ProcessError(JaxrankError):
    """A process that measures has ended without a result."""


def fresh(call: Callable[..., T], *arguments: Any, status: Status = lambda text: None) -> T:
    """What `call(status, *arguments)` returns in a new Python process, or raises there.

    The call, its arguments and its result are pickled. `status` gets what the call tells its own.

    Raises `ProcessError` where the process ends before the call does.
    """
    receiver, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_answer, args=(sender, call, arguments))
    process.start()
    sender.close()
    try:
        while True:
            kind, value = receiver.recv()
            match kind:
                case "said":
                    status(value)
                case "found":
                    return value
                case _:
                    raise value
    except EOFError:
        process.join()
        raise ProcessError(f"the process that measures ended with status {process.exitcode}") from None
    finally:
        process.kill()  # the call has ended, or nobody waits for it
        process.join()


def _answer(sender: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(("found", call(lambda text: sender.send(("said", text)), *arguments)))
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # what libraries raise cannot always be pickled
            error = RuntimeError(f"{type(error).__name__}: {error}")
        sender.send(("failed", error))
