"""tensorflow_model_server's spelling of flags: underscores for hyphens, `--flag=true`, and flags that have no
meaning here, which are taken and explained."""

from collections.abc import Collection, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

_TENSORFLOW = "TensorFlow does not run here"
_LOADING = "versions are loaded one after the other, by one thread"
_TFLITE = "a bundle holds no TensorFlow Lite model"
_BATCHING = "all models of a device share its streams, and --batching-parameters-file is for all of them"
_THREADS = "gRPC and REST share --threads"

UNUSED: dict[str, str] = {
    "num-load-threads": _LOADING,
    "num-unload-threads": _LOADING,
    "tensorflow-session-parallelism": _TENSORFLOW,
    "tensorflow-intra-op-parallelism": _TENSORFLOW,
    "tensorflow-inter-op-parallelism": _TENSORFLOW,
    "tensorflow-session-config-file": _TENSORFLOW,
    "per-process-gpu-memory-fraction": _TENSORFLOW,
    "platform-config-file": _TENSORFLOW,
    "thread-pool-factory-config-file": _TENSORFLOW,
    "saved-model-tags": "a bundle was converted from one meta graph",
    "grpc-max-threads": _THREADS,
    "rest-api-num-threads": _THREADS,
    "mixed-precision": "precision belongs to a bundle: jaxrank compile --precision",
    "num-tflite-pools": _TFLITE,
    "num-tflite-interpreters-per-pool": _TFLITE,
}
"""Flags with a value that have no meaning here, and why."""

UNUSED_SWITCHES: dict[str, str] = {
    "enable-per-model-batching-parameters": _BATCHING,
    "flush-filesystem-caches": "tables are mapped, and their pages are wanted in the cache",
    "remove-unused-fields-from-bundle-metagraph": "a bundle has no meta graph",
    "prefer-tflite-model": _TFLITE,
    "use-tflite-model": _TFLITE,
    "xla-cpu-compilation-enabled": "bundles are compiled before; see --engine",
    "xla-gpu-compilation-enabled": "bundles are compiled before; see --engine",
    "enable-profiler": "use jaxrank explain",
    "skip-initialize-tpu": "TPUs are not served",
    "enable-grpc-healthcheck-service": "it is always on",
    "use-alts-credentials": "connections are in the clear, or as --ssl-config-file says",
}
"""The same for flags that are true or false."""

_REFUSED_WHEN_TRUE = ("use-alts-credentials",)
_SWITCHES = (
    "enable-batching",
    "rest-api-enable-cors-support",
    "rest-api-plaintext",
    "allow-version-labels-for-unavailable-models",
    "enable-signature-method-name-check",
    "enable-serialization-as-tensor-content",
)
_SWITCHES_ON = ("enable-model-warmup",)
"""Those that are on by default."""
_TRUE, _FALSE = ("true", "1"), ("false", "0")
NOTES = "jaxrank.notes"
"""Key of the notes in the command's `Context.meta`."""


class ServeCommand(TyperCommand):
    """A command that takes both spellings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = [p for p in self.params if not getattr(p, "is_flag", True)]
        args, notes = translate(args, {name[2:] for option in options for name in option.opts})
        ctx.meta[NOTES] = notes
        return super().parse_args(ctx, args)


def translate(args: Sequence[str], valued: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """The arguments in jaxrank's spelling, and a note for each flag that has no meaning here. `valued` are
    the options with a value, in that spelling and without hyphens before.

    Raises `typer.BadParameter` for a switch that is neither true nor false, one that must not be ignored, and
    a flag with another one in place of its value: that would be lost.
    """
    found: list[str] = []
    notes: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if arg == "--":
            return [*found, arg, *rest], notes
        if not arg.startswith("--"):
            found.append(arg)
            continue
        name, equals, value = arg[2:].partition("=")
        name = name.replace("_", "-")
        if not equals and (name in UNUSED or name in valued) and (not rest or rest[0].startswith("--")):
            follows = f"{rest[0]} follows" if rest else "nothing follows"
            raise typer.BadParameter(f"--{name} needs a value, and {follows}; write --{name}=VALUE")
        if name in UNUSED:
            if not equals:
                rest.pop(0)
            notes.append(f"--{name} has no effect: {UNUSED[name]}")
        elif name in UNUSED_SWITCHES:
            if _is_true(name, equals, value) and name in _REFUSED_WHEN_TRUE:
                raise typer.BadParameter(f"--{name} is not supported: {UNUSED_SWITCHES[name]}")
            notes.append(f"--{name} has no effect: {UNUSED_SWITCHES[name]}")
        elif name in _SWITCHES_ON:
            found.append(f"--{name}" if _is_true(name, equals, value) else f"--no-{name}")
        elif name in _SWITCHES:
            if _is_true(name, equals, value):
                found.append(f"--{name}")
        else:
            found.append(f"--{name}{equals}{value}")
    return found, notes


def _is_true(name: str, equals: str, value: str) -> bool:
    if equals and value.lower() not in (*_TRUE, *_FALSE):
        raise typer.BadParameter(f"--{name}={value}: give true or false")
    return not equals or value.lower() in _TRUE
