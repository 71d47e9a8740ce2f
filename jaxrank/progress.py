"""What long work tells about itself: a stage at a time, and how much of one is done."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Called with a text at the start of each stage."""

    def __call__(self, text: str, /) -> None: ...

    def bar(self, description: str, total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """A bar within the running stage, for as long as the context lasts; call what it yields with the
        number of bytes that were done since."""
        ...

    def steps(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """The same for work that is counted in steps."""
        ...


class Silent:
    """Progress that nobody watches."""

    def __call__(self, text: str, /) -> None:
        pass

    def bar(self, description: str, total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda done: None)

    def steps(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(lambda done: None)
