"""The sparse half: runs a bundle's host program on host threads.

`program.py` runs the list of operators and fills the two feature blocks; `operators/` has one function per
operator; `lookups.py` opens embedding tables and vocabularies; `scopes.py` divides a program into the
request's part and the candidates'.
"""

from serving.host.program import HostProgramRunner

__all__ = ["HostProgramRunner"]
