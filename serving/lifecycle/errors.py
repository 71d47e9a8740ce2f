"""Why a version does not come into service, beside what is wrong with its files."""

from jaxrank.errors import JaxrankError


class LifecycleError(JaxrankError):
    """A version is not served."""


class SelfCheckError(LifecycleError):
    """The engine that would serve does not give the scores that the bundle recorded."""


class WarmupError(LifecycleError):
    """A warm-up request cannot be read or is not answered."""


class RolledBackError(LifecycleError):
    """A server took the version back because of its first requests, and its files have not changed since."""


class MemoryLimitError(LifecycleError):
    """The version does not fit into the server's memory limit beside what is loaded."""
