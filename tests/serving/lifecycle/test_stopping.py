"""A server that is stopped while it loads."""

import threading
from pathlib import Path

import pytest

from serving.grpc_server import Server, ServerOptions
from serving.model import Model
from serving.model_config import read_model_config

CONFIG = "model_config_list {{ {} }}"


def test_a_load_does_not_hold_up_the_end(
    example_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the middle of another configuration: requests are drained at once, and what loads afterwards
    is closed without being served."""

    def config(*names: str) -> str:
        bundles = example_models / "models"
        return CONFIG.format(
            " ".join(f'config {{ name: "{name}" base_path: "{bundles / name}" }}' for name in names)
        )

    path = tmp_path / "models.config"
    path.write_text(config("half_plus_three"))
    server = Server(
        ServerOptions(
            models=read_model_config(path),
            host="127.0.0.1",
            port=0,
            poll_seconds=0.05,
            config_file=path,
            config_poll_seconds=0.05,
        )
    )
    began, may_go_on, closed = threading.Event(), threading.Event(), threading.Event()
    load, close = Model.load, Model.close

    def slowly(bundle: Path, **options: object) -> Model:
        began.set()
        assert may_go_on.wait(60)
        monkeypatch.setattr(Model, "close", lambda model: (close(model), closed.set()))
        return load(bundle, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "load", slowly)
    stopping = threading.Thread(target=server.stop)
    try:
        path.write_text(config("half_plus_three", "regressor"))
        assert began.wait(60)
        stopping.start()
        stopping.join(60)
        assert not stopping.is_alive() and not server.repository.loaded()
    finally:
        may_go_on.set()
    assert closed.wait(30) and not server.repository.loaded()
