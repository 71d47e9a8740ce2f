"""An engine that is closed while it is used."""

import threading
from pathlib import Path

import pytest

from jaxrank.certificate import load_examples
from serving.model import Model


def test_close_waits_for_calls_and_leaves_nobody_waiting(ranker_bundle: Path) -> None:
    model = Model.load(ranker_bundle)
    example = max(load_examples(ranker_bundle), key=lambda e: e.rows)
    started = threading.Barrier(7)
    failed: list[BaseException] = []

    def use() -> None:
        started.wait()
        try:
            while True:
                model.predict(example.features)
        except RuntimeError as error:
            failed.append(error)

    threads = [threading.Thread(target=use, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    started.wait()
    model.close()
    model.close()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert [str(e) for e in failed] == ["the engine is closed"] * 6


def test_an_unknown_program_is_refused(ranker_bundle: Path) -> None:
    with pytest.raises(Exception, match="has no program 'bogus'; it has candidate_tower"):
        Model.load(ranker_bundle, only="bogus")
