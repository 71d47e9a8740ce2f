"""The exceptions of the bundle format. Every message says what was found, where, and what to do."""


class JaxrankError(Exception):
    """Base of every error that jaxrank raises on purpose; the command line prints it without a traceback."""

    exit_code = 2
    """Of every command that ends with it: what it was given is refused, as a wrong option is. 1 is left to
    faults of jaxrank's own and to what is not installed."""


class DestinationError(JaxrankError):
    """A bundle cannot be written where it was asked for: no room, no permission, no directory."""


class BundleError(JaxrankError):
    """A bundle is missing, damaged, or written by a newer schema than this version reads."""
