"""Errors of monitoring."""

from jaxrank.errors import JaxrankError


class MonitoringError(JaxrankError):
    """Traces or recorded traffic were asked for and cannot be had; the server does not start."""
