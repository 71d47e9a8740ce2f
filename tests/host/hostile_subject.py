"""`python -m tests.host.hostile_subject CALLS [CORE]`: runs the calls of a file natively, in a process of its
own that may crash. CORE is another build of the native core, with sanitizers."""

import faulthandler
import importlib.util
import pickle
import sys
from pathlib import Path


def load_core(path: str) -> None:
    """Imports the file as `serving.native._core`."""
    import serving.native

    spec = importlib.util.spec_from_file_location("serving.native._core", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serving.native._core"] = serving.native._core = module  # type: ignore[attr-defined]
    spec.loader.exec_module(module)


def main() -> None:
    """Prints how many calls were answered, and how many refused."""
    faulthandler.enable()
    if len(sys.argv) > 2:
        load_core(sys.argv[2])
    from serving.errors import InvalidRequestError
    from serving.host.native import NotNative
    from tests.host.one_operator import run_natively

    answered = refused = 0
    for op, inputs, attrs, outputs, constant in pickle.loads(Path(sys.argv[1]).read_bytes()):
        try:
            run_natively(op, inputs, attrs, outputs, constant, memory_limit=64 << 20)
            answered += 1
        except (InvalidRequestError, NotNative):
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{op} of {inputs} {attrs}") from error
    print(answered, refused)


if __name__ == "__main__":
    main()
