"""What an examination finds."""

import enum
from collections.abc import Sequence

import msgspec


class Severity(enum.IntEnum):
    """How much a finding matters to a server."""

    OK = 0
    """As it should be."""
    ADVICE = 1
    """Works; a change may make it faster or steadier."""
    WARNING = 2
    """Works, and costs latency or may stop working under load."""
    ERROR = 3
    """A server, or the bundle, does not work here as it is."""


EXIT_CODES = {Severity.OK: 0, Severity.ADVICE: 0, Severity.WARNING: 3, Severity.ERROR: 4}
"""Exit code of `jaxrank doctor` by the worst severity; 1 and 2 are errors of the command itself."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    Attributes:
        check: what was looked at.
        severity: of what was found.
        found: what it is.
        source: file, command or call that says so.
        change: what to do, and "" where nothing is to be done.
        why: the reason for the change.
    """

    check: str
    severity: Severity
    found: str
    source: str
    change: str = ""
    why: str = ""


def good(check: str, found: str, source: str) -> Finding:
    """A finding that is as it should be."""
    return Finding(check=check, severity=Severity.OK, found=found, source=source)


def worst(findings: Sequence[Finding]) -> Severity:
    """The highest severity; OK without findings."""
    return max((f.severity for f in findings), default=Severity.OK)
