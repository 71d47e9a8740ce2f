"""The exceptions of the bundle format. Every message says what was found, where, and what to do."""


class JaxrankError(Exception):
    """Base of every error that jaxrank raises on purpose; the command line prints it without a traceback."""

    exit_code = 1


class BundleError(JaxrankError):
    """A bundle is missing, damaged, or written by a newer schema than this version reads."""
