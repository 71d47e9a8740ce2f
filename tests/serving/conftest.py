"""A real server on a real port, in this process, and helpers to talk to it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.client import PredictClient
from serving.grpc_server import Server, ServerOptions

StartServer = Callable[..., Server]


@pytest.fixture(scope="module")
def start_server() -> Iterator[StartServer]:
    """Starts servers that are stopped at the end of the module."""
    servers: list[Server] = []

    def start(models_dir: Path, **options: object) -> Server:
        server = Server(
            ServerOptions(models=models_dir, host="127.0.0.1", port=0, poll_seconds=0.1, **options)
        )  # type: ignore[arg-type]
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def models_dir(ranker_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with the ranker as version 3."""
    path = tmp_path_factory.mktemp("models")
    shutil.copytree(ranker_bundle, path / "ranker" / "3")
    return path


@pytest.fixture(scope="module")
def address(models_dir: Path, start_server: StartServer) -> str:
    """Address of a server of `models_dir`."""
    return start_server(models_dir).address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[PredictClient]:
    """A client of that server."""
    client = PredictClient(address)
    yield client
    client.close()
