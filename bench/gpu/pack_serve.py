"""Writes a kit for the server: what `python -m bench.gpu.serve` needs on a machine with a GPU.

python -m bench.gpu.pack_serve --out kit_serve --models mmoe

OUT/kit.json                  target, models, commit
OUT/<model>/bundle/           the whole bundle, compiled for the target
OUT/<model>/requests.msgpack  requests of bench/serve_load.py
OUT/<model>/scores.npz        TensorFlow's for the first of them
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import msgspec
import numpy as np

from bench.gpu.kits import KitError, parse, writing
from bench.gpu.serve import KIT, REQUESTS, SCORES, Kit, Packed
from bench.results import commit
from jaxrank.errors import JaxrankError
from jaxrank.targets import choose_target

if TYPE_CHECKING:
    from bench.dense_models import DenseModel

USERS = 1_024
"""Of a kit: the server there keeps nothing of a user."""
LIMIT = 32 << 20
"""Bytes of a kit: 64 MiB are carried at once, and the wheels of the server and of what it needs beside NumPy
have 31."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments, chosen = parse(argv, "bench.gpu.pack_serve", __doc__, ("mmoe",))
    try:
        size = pack(chosen, arguments.out, arguments.target, arguments.work)
    except JaxrankError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{size / 2**20:.1f} MiB; the wheels, for the Python there:")
    print(f"  {wheels_command(arguments.out)}")
    print(f"  rm {arguments.out}/numpy-*.whl    # 16 MiB; NumPy is where JAX or PyTorch is")
    print(f"  pip wheel --no-deps -w {arguments.out} .    # with that Python: it builds the native core")


def wheels_command(out: Path) -> str:
    """How to get what the server needs beside its own wheel, in the versions that are installed here."""
    names = [re.split(r"[^\w.-]", r)[0] for r in metadata.requires("jaxrank") or () if "extra ==" not in r]
    pinned = " ".join(f"{name}=={metadata.version(name)}" for name in names)
    return f"pip download --only-binary=:all: --python-version 3.12 -d {out} {pinned}"


def pack(
    models: "Sequence[DenseModel]",
    out: Path,
    target: str,
    work: Path,
    progress: Callable[[str], None] = print,
) -> int:
    """Writes the kit. Returns its bytes.

    Raises `KitError`: the directory exists, or the kit is larger than `LIMIT`. `CompileError`: what the
    compiler refuses.
    """
    from bench.dense_build import build
    from bench.serve_requests import requests
    from converters.loaders import load
    from serving.wire import predict_pb2 as pb
    from serving.wire.codec import decode

    packed = []
    with writing(out, target) as part:
        for model in models:
            built = build(model, work, progress, target)
            chosen = choose_target(built.bundle, built.manifest, target)
            directory = part / model.name
            shutil.copytree(built.bundle, directory / "bundle")
            messages, first = requests(model, work, USERS)
            shutil.move(messages, directory / REQUESTS)
            sent = pb.PredictRequest.FromString(first).inputs
            scores = load(built.saved).predict({name: decode(name, value) for name, value in sent.items()})
            np.savez(directory / SCORES, allow_pickle=False, **scores)
            packed.append(Packed(model.name, model.slo_ms, len(first), chosen.engine, chosen.driver))
        (part / KIT).write_bytes(msgspec.json.encode(Kit(target, commit(), packed)))
        size = sum(p.stat().st_size for p in part.rglob("*") if p.is_file())
        if size > LIMIT:
            raise KitError(f"the kit has {size >> 20} MiB, more than {LIMIT >> 20}; leave out some --models")
    return size


if __name__ == "__main__":
    main()
