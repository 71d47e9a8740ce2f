"""Which models are served from where: TensorFlow Serving's model configuration, from a text protobuf or an
RPC."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from jaxrank.errors import JaxrankError
from serving.errors import InvalidRequestError
from serving.lifecycle.trials import ShareError, Trial
from serving.wire import server_config_pb2 as pb

M = TypeVar("M", bound=Message)


class ConfigError(JaxrankError):
    """A configuration file cannot be used."""


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of a model are served at once: the `latest` highest ones, or those in `specific`, or all
    where both are None."""

    latest: int | None = 1
    specific: frozenset[int] | None = None

    def candidates(self, versions: Iterable[int]) -> list[int]:
        """The versions that may be served, highest first; at most `latest` of them are to be."""
        allowed = versions if self.specific is None else self.specific.intersection(versions)
        return sorted(allowed, reverse=True)


ALL = VersionPolicy(latest=None)


@dataclass(frozen=True)
class ModelConfig:
    """One model: the directory with its version directories, which versions, labels of versions, and what
    its newest version does before it takes over."""

    name: str
    base_path: Path
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = field(default_factory=dict)
    trial: Trial | None = None

    @property
    def policy_with_trial(self) -> VersionPolicy:
        """The policy; the one highest version becomes two while there is a trial."""
        if self.trial is None or self.policy.latest != 1:
            return self.policy
        return replace(self.policy, latest=2)


def read_text(path: Path) -> str:
    """What a file holds. Raises `ConfigError`."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def read_text_proto(path: Path, kind: type[M]) -> M:
    """A text protobuf file. Raises `ConfigError` with the file, the line and what is wrong there."""
    return _parse(path, read_text(path), kind)


def read_model_config(path: Path) -> tuple[ModelConfig, ...]:
    """The models of a `--model_config_file`. Raises `ConfigError`."""
    return parse_model_config(path, read_text(path))


def parse_model_config(path: Path, text: str) -> tuple[ModelConfig, ...]:
    """The same where the file was read before. Raises `ConfigError`."""
    try:
        return model_configs(_parse(path, text, pb.ModelServerConfig))
    except InvalidRequestError as error:
        raise ConfigError(f"{path}: {error}") from error


def model_configs(config: pb.ModelServerConfig) -> tuple[ModelConfig, ...]:
    """The models of a `ModelServerConfig`.

    Raises `InvalidRequestError`, as TensorFlow Serving does: a configuration of another kind, a model without
    a name or listed twice, a base path that is not absolute, a platform that is not TensorFlow's.
    """
    kind = config.WhichOneof("config")
    if kind != "model_config_list":
        raise InvalidRequestError(
            f"the configuration has {kind or 'no config'}; only model_config_list is supported"
        )
    configs = tuple(_model_config(entry) for entry in config.model_config_list.config)
    names = [c.name for c in configs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequestError(f"model {name[:200]!r} is listed more than once in model_config_list")
    return configs


def channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    """The gRPC arguments of `--grpc_channel_arguments`, `name=value,name=value`; numbers are integers. Raises
    `ConfigError`."""
    found: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise ConfigError(f"--grpc_channel_arguments has {part!r}; write name=value,name=value")
        number = value.removeprefix("-")
        found.append((name, int(value) if number.isascii() and number.isdecimal() else value))
    return tuple(found)


def _parse(path: Path, text: str, kind: type[M]) -> M:
    try:
        return text_format.Parse(text, kind())
    except text_format.ParseError as error:
        raise ConfigError(f"{path} is not a text protobuf of {kind.DESCRIPTOR.name}: {error}") from error


def _model_config(entry: pb.ModelConfig) -> ModelConfig:
    shown = entry.name[:200]
    if not entry.name:
        raise InvalidRequestError(f"a model of model_config_list has no name (base_path: {entry.base_path})")
    if not Path(entry.base_path).is_absolute():
        raise InvalidRequestError(
            f"model {shown!r} needs an absolute base_path, it has {entry.base_path[:200]!r}"
        )
    # A bundle says itself what runs it; the platform only has to be the one that it was converted from.
    if entry.model_platform not in ("", "tensorflow") or entry.model_type == pb.OTHER:
        raise InvalidRequestError(
            f"model {shown!r} has the platform {entry.model_platform[:200] or 'OTHER'!r}; only "
            "'tensorflow' is served"
        )
    return ModelConfig(
        entry.name,
        Path(entry.base_path),
        _policy(entry.model_version_policy),
        dict(entry.version_labels),
        _trial(entry.trial, shown) if entry.HasField("trial") else None,
    )


def _trial(trial: pb.Trial, model: str) -> Trial:
    try:
        return Trial(trial.canary, trial.shadow, trial.version or None)
    except ShareError as error:
        raise InvalidRequestError(f"the trial of model {model!r}: {error}") from error


def _policy(policy: pb.FileSystemStoragePathSourceConfig.ServableVersionPolicy) -> VersionPolicy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return ALL
        case "specific":
            return VersionPolicy(None, frozenset(policy.specific.versions))
        case _:
            return VersionPolicy(policy.latest.num_versions or 1)
