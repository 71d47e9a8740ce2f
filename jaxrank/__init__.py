"""What a ranking model *is*: the bundle format, its signature and feature scopes, and the command line.

`manifest.py` is the schema of `manifest.json`; `host_program.py` is the schema of `host_program.json`;
`bundle.py` opens, verifies and writes the directory that holds them; `cli/` is the `jaxrank` command.
Importing this package loads neither TensorFlow nor JAX: a serving host needs the format, not the compilers.
"""

from jaxrank.errors import BundleError, JaxrankError

__all__ = ["BundleError", "JaxrankError"]
