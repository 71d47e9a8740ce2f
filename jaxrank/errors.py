"""The exceptions of the bundle format. Every message says what was found, where, and what to do."""


class JaxrankError(Exception):
    """Base of every error that jaxrank raises on purpose; the command line prints it without a traceback."""

    exit_code = 1


class DestinationError(JaxrankError):
    """A bundle cannot be written where it was asked for: no room, no permission, no directory."""

    exit_code = 2


class BundleError(JaxrankError):
    """A bundle is missing, damaged, or written by a newer schema than this version reads."""
