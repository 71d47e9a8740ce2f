"""Tables in RocksDB on this machine: a directory for each table, so that one is pushed while others serve.

Keys: `r` and the row's key (8 bytes, big-endian) -> the row; `k` and a block's number -> keys in the order of
the table's file; `record` and `position`. A step of a push is one write batch with the new position in it.
"""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from serving.tiers.breaker import Breaker
from serving.tiers.config import RocksDBStore
from serving.tiers.errors import (
    StoredTableError,
    StoreFullError,
    StoreUnavailableError,
    TableNotStoredError,
)
from serving.tiers.record import KEY_BLOCK, TableRecord, big_endian, decode_record, encode_record
from serving.tiers.store import Share, place_rows

_RECORD, _POSITION = b"record", b"position"
_PIECE = 512
"""Keys of one read: what a deadline may cut off."""
_FAILURES_TO_OPEN, _PROBE_SECONDS = 3, 0.25
_FAIR_SECONDS = 0.005
"""A disk that gave nothing in less time than this did not fail."""
T = TypeVar("T")


class RocksDB:
    """A store of the config, for lookups and for transfers."""

    def __init__(self, name: str, config: RocksDBStore):
        self.name = name
        self._config = config
        self._cache = Cache(config.block_cache_mib << 20)

    def records(self) -> list[TableRecord]:
        if not self._config.path.is_dir():
            return []
        found = [
            _record(path, self._options()) for path in sorted(self._config.path.iterdir()) if path.is_dir()
        ]
        return [record for record in found if record is not None]

    def position(self, record: TableRecord) -> int:
        if not self._directory(record).is_dir():
            return 0
        with self._read(record) as db:
            return _position(db)

    def shares(self, record: TableRecord) -> list[Share]:
        directory = self._directory(record)
        size = sum(p.stat().st_size for p in directory.iterdir() if p.is_file())
        return [Share(place=str(directory), rows=self.position(record), bytes=size)]

    def open(self, record: TableRecord) -> "RocksDBTable":
        stored = self.position(record)
        if stored != record.rows:
            raise TableNotStoredError(
                f"store {self.name!r} holds {stored} of the {record.rows} rows of {record.identity} in "
                f"{self._directory(record)}; run `jaxrank tables push` again, which goes on from there"
            )
        return RocksDBTable(
            record, self._read(record), self._config.threads, f"table {record.identity} in {self.name}"
        )

    def read_keys(self, record: TableRecord, start: int, stop: int) -> np.ndarray:
        blocks = range(start // KEY_BLOCK, -(-stop // KEY_BLOCK))
        with self._read(record) as db:
            found: Any = db.get([b"k" + block.to_bytes(8, "big") for block in blocks])
        if any(block is None for block in found):
            raise TableNotStoredError(f"store {self.name!r} lacks keys of {record.identity}; push it again")
        return np.frombuffer(b"".join(found), "<i8")[: stop - start].astype(np.int64)

    def writer(self, record: TableRecord) -> "RocksDBWriter":
        directory = self._directory(record)
        db = _guarded(lambda: _open(directory, self._options(), AccessType.read_write()), directory)
        return RocksDBWriter(record, db, directory)

    def drop(self, record: TableRecord) -> None:
        shutil.rmtree(self._directory(record), ignore_errors=True)

    def close(self) -> None:
        pass

    def _directory(self, record: TableRecord) -> Path:
        return self._config.path / quote(record.identity, safe="@")

    def _read(self, record: TableRecord) -> Rdict:
        directory = self._directory(record)
        try:
            return Rdict(str(directory), self._options(), access_type=AccessType.read_only(False))
        except Exception as error:  # rocksdict raises nothing narrower
            raise StoreUnavailableError(f"{directory} cannot be opened: {error}") from error

    def _options(self) -> Options:
        options = Options(raw_mode=True)
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        options.set_block_based_table_factory(blocks)
        options.set_compression_type(DBCompressionType.none())  # trained weights do not compress
        options.set_keep_log_file_num(2)
        return options


class RocksDBTable:
    """A table opened read-only. Reads run in threads, so that a slow disk does not hold a request."""

    def __init__(self, record: TableRecord, db: Rdict, threads: int, place: str):
        self.record = record
        self._db = db
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rocksdb")
        self._breaker = Breaker(place, self._look, failures_to_open=_FAILURES_TO_OPEN, pause_s=_PROBE_SECONDS)

    def fetch(self, keys: np.ndarray, rows: np.ndarray, states: np.ndarray, deadline: float | None) -> None:
        if self._breaker.open or not len(keys):
            return
        started, every = time.monotonic(), np.arange(len(keys))
        pieces: dict[Future[list[bytes | None]], int] = {
            self._pool.submit(self._get, keys[at : at + _PIECE]): at for at in range(0, len(keys), _PIECE)
        }
        timeout = None if deadline is None else max(0.0, deadline - started)
        done, late = wait(pieces, timeout)
        for future in late:
            future.cancel()
        for future in done:
            at = pieces[future]
            error = future.exception()
            if error is not None:
                self._breaker.failed(str(error), at_once=True)
                continue
            try:
                place_rows(future.result(), every[at : at + _PIECE], rows, states)
            except StoredTableError as damage:
                self._breaker.failed(str(damage), at_once=True)
        if done:
            self._breaker.succeeded()
        elif time.monotonic() - started >= _FAIR_SECONDS:
            self._breaker.failed("its disk gives no rows within the budget", at_once=False)

    def close(self) -> None:
        self._breaker.close()
        self._pool.shutdown(cancel_futures=True)
        self._db.close()

    def _get(self, keys: np.ndarray) -> list[bytes | None]:
        data = big_endian(keys).tobytes()
        found: Any = self._db.get([b"r" + data[at : at + 8] for at in range(0, len(data), 8)])
        return found

    def _look(self) -> None:
        future = self._pool.submit(self._get, np.zeros(1, np.int64))
        future.result(timeout=1.0)


class RocksDBWriter:
    """One push. RocksDB's own lock keeps a second one out."""

    def __init__(self, record: TableRecord, db: Rdict, directory: Path):
        self._record = record
        self._db = db
        self._directory = directory
        self._sync = WriteOptions()
        self._sync.sync = True
        self.position = _position(db)
        if not self.position:
            _guarded(lambda: db.put(_RECORD, encode_record(record)), directory)

    def write(self, start: int, keys: np.ndarray | None, rows: np.ndarray) -> None:
        batch = WriteBatch(raw_mode=True)
        own = np.arange(start, start + len(rows), dtype=np.int64) if keys is None else keys
        names, values, size = big_endian(own).tobytes(), rows.tobytes(), rows.shape[1]
        for i in range(len(rows)):
            batch.put(b"r" + names[8 * i : 8 * i + 8], values[size * i : size * (i + 1)])
        for at in range(0, 0 if keys is None else len(rows), KEY_BLOCK):
            block = (start + at) // KEY_BLOCK
            batch.put(b"k" + block.to_bytes(8, "big"), own[at : at + KEY_BLOCK].astype("<i8").tobytes())
        batch.put(_POSITION, b"%d" % (start + len(rows)))
        _guarded(lambda: self._db.write(batch, self._sync), self._directory)
        self.position = start + len(rows)

    def close(self) -> None:
        try:
            if self.position == self._record.rows:
                # One sorted run: a lookup then reads one block.
                _guarded(lambda: self._db.compact_range(None, None), self._directory)
        finally:
            _guarded(self._db.close, self._directory)  # says a failed write once more


def _open(directory: Path, options: Options, access: AccessType) -> Rdict:
    directory.parent.mkdir(parents=True, exist_ok=True)
    return Rdict(str(directory), options, access_type=access)


def _record(directory: Path, options: Options) -> TableRecord | None:
    """None for a directory that is no table, or one whose push was killed before it wrote anything."""
    try:
        with Rdict(str(directory), options, access_type=AccessType.read_only(False)) as db:
            data = db.get(_RECORD)
            return None if data is None else decode_record(data)
    except msgspec.DecodeError:
        return None
    except Exception:  # rocksdict raises nothing narrower
        return None


def _position(db: Rdict) -> int:
    return int(db.get(_POSITION) or b"0")


def _guarded(work: Callable[[], T], directory: Path) -> T:
    """RocksDB's errors on writing, as ours. rocksdict raises plain `Exception`s with RocksDB's text."""
    try:
        return work()
    except OSError as error:
        raise StoreUnavailableError(f"{directory} cannot be written: {error.strerror}") from error
    except Exception as error:
        text = str(error)
        if "No space left" in text or "File too large" in text or "Disk quota" in text:
            raise StoreFullError(
                f"{directory}: {text}. What was pushed stays; make room and run the same command again, "
                "which "
                "goes on from there"
            ) from error
        if "/LOCK" in text:
            raise StoreUnavailableError(
                f"{directory} is being written by another `jaxrank tables push`; wait for it to end"
            ) from error
        raise StoreUnavailableError(f"{directory} cannot be written: {text}") from error
