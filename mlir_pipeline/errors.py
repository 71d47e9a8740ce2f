"""Errors of the compiler."""

from jaxrank.errors import JaxrankError


class CompileError(JaxrankError):
    """A model or target cannot be compiled; the message names the op or target and says what to do."""
