"""Damaged bundles, given to a running server: each is refused with the file at fault, or scores as the sound
one does, and a healthy model goes on answering meanwhile.

`JAXRANK_DAMAGED_BUNDLES` is how many; `make faults` gives it 1,000.
"""

import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from jaxrank import bundle as files
from serving.wire import model_service_pb2
from serving.wire import predict_pb2 as pb
from serving.wire.reflection import MODEL_SERVICE
from tests import models
from tests.faults.server import ServerProcess, eventually, serve

BUNDLES = int(os.environ.get("JAXRANK_DAMAGED_BUNDLES", "60"))
BATCH = 20
"""Versions at once: the server remembers 32 that ended."""
GROWTH_MIB = 64
FEATURES = models.ranker_request(6, 3)
SEALED = ("host_program.json", "tables/")
"""Files that are damaged again with a digest that fits: what does not run as native code."""


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[ServerProcess]:
    with serve(models_dir, "--poll-seconds", "0.1", "--max-num-load-retries", "0") as running:
        yield running


def _copy(bundle: Path, destination: Path) -> Path:
    """A bundle of links to the files of another one, but for its manifest."""
    for path in sorted(p for p in bundle.rglob("*") if p.is_file() and p.name != files.MANIFEST):
        place = destination / path.relative_to(bundle)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    return destination


def _damaged(content: bytes, other: bytes, draw: random.Random) -> bytes | None:
    """What became of a file; None: it is gone."""
    at = draw.randrange(len(content))
    match draw.choice(["truncate", "flip", "flip", "empty", "swap", "gone", "longer", "zeros"]):
        case "truncate":
            return content[:at]
        case "flip":
            return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        case "empty":
            return b""
        case "swap":
            return other
        case "longer":
            return content + content[:at]
        case "zeros":
            return content[:at] + bytes(len(content) - at)
    return None


def _write(bundle: Path, directory: Path, name: str, draw: random.Random, seal: bool) -> None:
    """A bundle of which one file is damaged. The manifest comes last: with it the directory is a bundle."""
    _copy(bundle, directory)
    other = draw.choice([p for p in bundle.rglob("*") if p.is_file()])
    content = _damaged((bundle / name).read_bytes(), other.read_bytes(), draw)
    (directory / name).unlink(missing_ok=True)
    if name != files.MANIFEST:
        if content is not None:
            (directory / name).write_bytes(content)
        content = (bundle / files.MANIFEST).read_bytes()
    if seal:
        files.write_manifest(directory, files.read_manifest(bundle))
        return
    (directory / f".{files.MANIFEST}").write_bytes(content or b"")
    (directory / f".{files.MANIFEST}").rename(directory / files.MANIFEST)


def _statuses(server: ServerProcess, channel: grpc.Channel) -> dict[int, tuple[int, str]]:
    """State and error of every version of `damaged`."""
    request = model_service_pb2.GetModelStatusRequest(model_spec=pb.ModelSpec(name="damaged"))
    call = channel.unary_unary(f"/{MODEL_SERVICE}/GetModelStatus")
    try:
        data = call(request.SerializeToString(), timeout=60)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        return {}
    found = model_service_pb2.GetModelStatusResponse.FromString(data).model_version_status
    return {s.version: (s.state, s.status.error_message) for s in found}


def _give(
    server: ServerProcess,
    models_dir: Path,
    bundle: Path,
    count: int,
    seal: bool,
    check: Callable,
    tally: Counter[str],
) -> None:
    """Gives the server damaged versions in batches, and `check`s what became of each."""
    draw = random.Random(7 + seal)
    names = [str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()]
    names = sorted(n for n in names if n.startswith(SEALED) or not seal)
    client, aside = server.client(), models_dir / ".aside"
    version = 1 if not seal else 1_000_000
    while count > 0:
        batch = {}
        for _ in range(min(BATCH, count)):
            batch[version] = names[version % len(names)]
            _write(bundle, aside / str(version), batch[version], draw, seal)
            version, count = version + 1, count - 1
        for number in batch:
            (models_dir / "damaged").mkdir(exist_ok=True)
            (aside / str(number)).rename(models_dir / "damaged" / str(number))
        tally["damaged_bundles"] += len(batch)
        found = _wait_for(batch, server, client.channel)
        tally["damaged_bundles_not_tried"] += len(batch.keys() - found.keys())
        for number, name in batch.items():
            if number in found:
                check(client, number, name, *found[number])
        shutil.rmtree(models_dir / "damaged")
        assert server.alive()
    client.close()


def _wait_for(batch: dict[int, str], server: ServerProcess, channel: grpc.Channel) -> dict:
    """What became of the versions, once each is refused, or all above one that is served: the server looks
    for the highest one that loads."""
    state = model_service_pb2.ModelVersionStatus
    found: dict[int, tuple[int, str]] = {}

    def decided() -> bool:
        found.clear()
        found.update(_statuses(server, channel))
        for number in sorted(batch, reverse=True):
            if number not in found or found[number][0] not in (state.END, state.AVAILABLE):
                return False
            if found[number][0] == state.AVAILABLE:
                return True
        return True

    eventually(decided)
    return found


class _Healthy(threading.Thread):
    """Asks the healthy model again and again, and keeps what was wrong."""

    def __init__(self, server: ServerProcess):
        super().__init__()
        self._client, self._enough, self.wrong, self.asked = server.client(), threading.Event(), [], 0
        self.expected = self._client.predict("ranker", FEATURES)

    def run(self) -> None:
        while not self._enough.wait(0.02):
            self.asked += 1
            try:
                found = self._client.predict("ranker", FEATURES, timeout=30)
            except grpc.RpcError as error:
                self.wrong.append(error)
                continue
            if any(not np.array_equal(found[name], value) for name, value in self.expected.items()):
                self.wrong.append(found)

    def end(self) -> None:
        self._enough.set()
        self.join()
        self._client.close()


@pytest.mark.parametrize("seal", [False, True], ids=["damaged", "with fitting digests"])
def test_damaged_bundles(
    server: ServerProcess, models_dir: Path, ranker_bundle: Path, tally: Counter[str], seal: bool
) -> None:
    healthy = _Healthy(server)
    healthy.start()
    before, refused = server.rss_mib(), 0
    tally["damaged_bundles_refused"] += 0

    def check(client, version: int, name: str, state: int, error: str) -> None:  # noqa: ANN001
        nonlocal refused
        if state != model_service_pb2.ModelVersionStatus.AVAILABLE:
            assert seal or name in error or files.MANIFEST in error, (name, error)
            assert error
            refused += 1
            tally["damaged_bundles_refused"] += 1
            return
        tally["damaged_bundles_served"] += 1
        try:
            found = client.predict("damaged", FEATURES, version=version, timeout=30)
        except grpc.RpcError as refusal:
            assert seal and refusal.code() is not grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            return
        if not seal:  # the damage is where nothing looks
            assert all(np.array_equal(found[name], value) for name, value in healthy.expected.items())

    try:
        _give(server, models_dir, ranker_bundle, BUNDLES // 2, seal, check, tally)
    finally:
        tally["crashes"] += not server.alive()
        healthy.end()
    assert refused and healthy.asked and not healthy.wrong
    assert server.rss_mib() - before < GROWTH_MIB
    print(f"{BUNDLES // 2} bundles, {refused} refused, {healthy.asked} requests meanwhile")
