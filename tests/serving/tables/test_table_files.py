"""The file of a table: its bytes as docs/tables.md has them, how it is written, and what a damaged one
does."""

import os
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.native import _core
from serving.tables import (
    DamagedTableError,
    RowFormat,
    Table,
    TableError,
    TableMismatchError,
    TableVersionError,
    TableWriteError,
    TableWriter,
    compact,
    key_index,
    open_table,
)
from tests.shared import killed

ROW_FORMATS: tuple[RowFormat, ...] = ("f32", "f16", "bf16", "int8", "f64", "i32", "i64")


def write(
    path: Path, rows: np.ndarray, row_format: RowFormat = "f32", keys: Any = None, **options: Any
) -> Path:
    with TableWriter(path, rows.shape[1], row_format, keys is not None, **options) as writer:
        for start in range(0, len(rows), 1000):
            some = slice(start, start + 1000)
            writer.append(rows[some], None if keys is None else keys[some])
    return path


def hashed(data: bytes) -> int:
    return _core.xxh64(np.frombuffer(data, np.uint8))


def with_header(data: bytes, **fields: tuple[str, int, Any]) -> bytes:
    """The file with fields `(struct format, offset, value)` of its header replaced, and the header's hash."""
    out = bytearray(data)
    for form, offset, value in fields.values():
        struct.pack_into("<" + form, out, offset, value)
    struct.pack_into("<Q", out, 4088, hashed(bytes(out[:4088])))
    return bytes(out)


def test_xxh64() -> None:
    """The test vectors that are published with the algorithm: every length's tail has its own code."""
    text = b"Nobody inspects the spammish repetition"
    assert hashed(b"") == 0xEF46DB3751D8E999
    assert hashed(b"a") == 0xD24EC4F1A98C6E5B
    assert hashed(b"abc") == 0x44BC2CF5AD770999
    assert hashed(text) == 0xFBCEA83C8A378BF1


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_every_byte_is_as_documented(row_format: RowFormat, keyed: bool, tmp_path: Path) -> None:
    """Reads a file by the page alone."""
    rng = np.random.default_rng(0)
    count, dim = 3001, 7
    rows = rng.normal(0, 100, (count, dim))
    rows = rows.astype("int64" if row_format[0] == "i" and row_format != "int8" else "float64")
    keys = rng.permutation(10_000)[:count] - 5000 if keyed else None
    data = write(tmp_path / "t", rows, row_format, keys, default="zeros").read_bytes()

    assert data[:8] == bytes.fromhex("89 4a 58 54 0d 0a 1a 0a")
    fields = struct.unpack_from("<IIqqqIIQQQQQQQQ", data, 8)
    version, code, n, d, row_bytes, default, has_keys, *rest = fields
    at_rows, at_keys, at_slots, homes, slots, at_sums, size, sums_hash = rest
    element = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1, "f64": 8, "i32": 4, "i64": 8}[row_format]
    assert (version, code, n, d) == (1, ROW_FORMATS.index(row_format), count, dim)
    assert row_bytes == dim * element + (4 if row_format == "int8" else 0)
    assert (default, has_keys, at_rows, size) == (1, keyed, 4096, len(data))
    assert data[112:4088] == bytes(3976)
    assert struct.unpack_from("<Q", data, 4088)[0] == hashed(data[:4088])

    stored = np.frombuffer(data, np.uint8, (count + 1) * row_bytes, at_rows).reshape(count + 1, row_bytes)
    assert at_keys == -(-(at_rows + stored.size) // 64) * 64
    assert not stored[-1].any()
    if row_format == "bf16":
        numbers = (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif row_format == "int8":
        numbers = stored[:, 4:].view(np.int8) * stored[:, :4].copy().view(np.float32)
    else:
        kind = {"f32": "f4", "f16": "f2", "f64": "f8", "i32": "i4", "i64": "i8"}[row_format]
        numbers = stored.view(kind)
    step = {"f32": 2**-24, "f16": 2**-11, "bf16": 2**-8}.get(row_format, 0)
    error, largest = np.abs(numbers[:-1] - rows), np.abs(rows).max(1, keepdims=True)
    assert (error <= (largest / 253 if row_format == "int8" else step * np.abs(rows))).all()

    if keys is not None:
        np.testing.assert_array_equal(np.frombuffer(data, np.int64, count, at_keys), keys)
        assert at_slots == -(-(at_keys + 8 * count) // 64) * 64
        assert homes == count * 5 // 4 and slots >= homes
        for row in rng.integers(0, count, 300).tolist():
            h = int(keys[row]) % 2**64
            h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD % 2**64
            h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 % 2**64
            h ^= h >> 33
            slot = h * homes >> 64
            while True:
                value = int.from_bytes(data[at_slots + 6 * slot : at_slots + 6 * slot + 6], "little")
                assert value, f"row {row} is not found"
                if value == (h % 2**12) << 36 | row + 1:
                    break
                slot += 1
        assert data[at_slots + 6 * (slots - 1) : at_slots + 6 * slots + 2] == bytes(8)
        assert at_sums == -(-(at_slots + 6 * slots + 2) // 64) * 64
    else:
        assert (at_slots, at_sums, homes, slots) == (at_keys, at_keys, 0, 0)
    blocks = [data[i : min(i + 65536, at_sums)] for i in range(4096, at_sums, 65536)]
    sums = data[at_sums:]
    assert list(struct.unpack(f"<{len(blocks)}Q", sums)) == [hashed(b) for b in blocks]
    assert sums_hash == hashed(sums)


def test_the_index_is_the_same_in_one_pass_and_in_many() -> None:
    """And takes at most 16 bytes for each key, with the key itself."""
    keys = np.random.default_rng(0).permutation(200_000) * 7919
    whole = np.concatenate(list(key_index.slots(keys, "t")))
    np.testing.assert_array_equal(np.concatenate(list(key_index.slots(keys, "t", 10_000))), whole)
    assert (whole.size + keys.nbytes) / len(keys) < 16


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("keyed", [False, True])
def test_tables_of_no_and_one_row(rows: int, keyed: bool, tmp_path: Path) -> None:
    keys = np.arange(rows) + 5 if keyed else None
    table = open_table(write(tmp_path / "t", np.ones((rows, 3), np.float32), keys=keys, default="mean"))
    out = np.empty((2, 3), np.float32)
    table.lookup(np.array([5 if keyed else 0, 9]), out)
    np.testing.assert_array_equal(out, np.full((2, 3), rows))
    table.verify()


@pytest.mark.parametrize(
    ("rows", "row_format", "message"),
    [
        ([[1.0, 2.0], [3.0, np.nan]], "f32", r"nan is not finite \(row 1, column 1\)"),
        ([[np.inf, 2.0]], "int8", r"inf is not finite \(row 0, column 0\)"),
        ([[1.0, 7e4]], "f16", r"70000.0 is beyond f16 \(row 0, column 1\)"),
        ([[1.0, 3.4e38]], "bf16", "beyond bf16"),
        ([[1.0, 1e39]], "f32", "beyond f32"),
        ([[1.0, 1e39]], "int8", "beyond int8"),
        ([[1, 1 << 31]], "i32", r"2147483648 is beyond i32 \(row 0, column 1\)"),
    ],
)
def test_weights_that_are_not_finite_are_refused(
    rows: Any, row_format: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TableWriteError, match=message):
        write(tmp_path / "t", np.array(rows), row_format)
    assert not list(tmp_path.iterdir())


def test_the_largest_and_the_smallest_weights(tmp_path: Path) -> None:
    """At the ends of each format, subnormal numbers included."""
    for row_format, values in [
        ("f16", [65504, -65504, 2**-24, 2**-14, 0]),
        ("bf16", [3.3895314e38, 2**-133, -(2**-126), 0, 1]),
        ("f32", [3.4028235e38, 2**-149, -(2**-126), 0, 1]),
    ]:
        rows = np.array([values], np.float32)
        table = open_table(write(tmp_path / row_format, rows, row_format))
        out = np.empty_like(rows)
        table.lookup(np.array([0]), out)
        np.testing.assert_array_equal(out, rows)
    extreme = np.array([[3.4028235e38, 0], [1e-45, 0]], np.float32)
    out = open_table(write(tmp_path / "int8", extreme, "int8")).read(0, 2)
    np.testing.assert_allclose(out, extreme, rtol=1 / 254, atol=1e-44)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    one = np.ones((1, 2), np.float32)
    for wrong, error, message in [
        (lambda: write(tmp_path / "t", one, "f8"), TableMismatchError, "no row format 'f8'; there are f32"),  # type: ignore[arg-type]
        (lambda: write(tmp_path / "t", np.ones((2, 0), np.float32)), TableMismatchError, "dim is 0"),
        (
            lambda: write(tmp_path / "t", one, "i64"),
            TableMismatchError,
            "i64.* rows of float32",
        ),
        (lambda: write(tmp_path / "t", one, default="none"), TableMismatchError, "no default 'none'"),
        (lambda: write(tmp_path / "t", one, default=np.ones(3)), TableMismatchError, r"default row is \[3\]"),
        (lambda: write(tmp_path / "t", one, keys=np.array([1.0])), TableMismatchError, "keys are float64"),
        (lambda: write(tmp_path / "t", one, keys=np.array([1, 2])), TableMismatchError, r"int64\[1\]"),
        (lambda: write(tmp_path / "none" / "t", one), TableWriteError, "cannot be written.*No such file"),
        (lambda: open_table(tmp_path / "none"), TableError, "cannot be opened: No such file"),
        (lambda: open_table(tmp_path), TableError, "no regular file"),
        (
            lambda: open_table(write(tmp_path / "ok", one), dtype=np.dtype("f2")),
            TableMismatchError,
            "not of float16",
        ),
    ]:
        with pytest.raises(error, match=message):
            wrong()
    writer = TableWriter(tmp_path / "ok", 2)
    with pytest.raises(TableMismatchError, match=r"float32\[1, 3\] for rows \[n, 2\]"):
        writer.append(np.ones((1, 3), np.float32))
    with pytest.raises(TableWriteError, match="given up after an error"):
        writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["ok"]


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    keys = np.arange(5000)
    keys[4321] = 17
    with pytest.raises(TableWriteError, match="key 17 stands in row 17 and in row 4321"):
        write(tmp_path / "t", np.ones((5000, 2), np.float32), keys=keys)
    assert not list(tmp_path.iterdir())


def test_a_failing_body_and_an_error_leave_the_old_table(tmp_path: Path) -> None:
    path = write(tmp_path / "t", np.full((10, 2), 3, np.float32))
    with pytest.raises(KeyboardInterrupt), TableWriter(path, 2) as writer:
        writer.append(np.zeros((5, 2), np.float32))
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    assert (open_table(path).read(0, 10) == 3).all()


_FULL_DISK = """
import resource, signal, sys
import numpy as np
from serving.tables import TableWriteError, TableWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with TableWriter(sys.argv[1], 64, keyed=True) as writer:
        for i in range(100):
            writer.append(np.ones((1000, 64), np.float32), np.arange(i * 1000, (i + 1) * 1000))
except TableWriteError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [10_000, 500_000, 25_604_096, 27_000_000])
def test_a_full_disk_leaves_nothing(limit: int, tmp_path: Path) -> None:
    """In the first rows, in the keys, at the end of the rows, and in the index: files may grow to a limit
    only, and the writer meets EFBIG as it would ENOSPC."""
    (tmp_path / "t").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path / "t"), str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "cannot be written" in done.stdout and "nothing was written" in done.stdout, done.stderr
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("t", b"old")]


_KILLED = """
import sys
import numpy as np
from serving.tables import TableWriter
with TableWriter(sys.argv[1], 64) as writer:
    while True:
        writer.append(np.zeros((1000, 64), np.float32))
        print("more", flush=True)
"""


def test_a_killed_writer_leaves_the_old_table(tmp_path: Path) -> None:
    path = write(tmp_path / "t", np.full((10, 64), 3, np.float32))
    with killed(
        subprocess.Popen([sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.PIPE)
    ) as process:
        assert process.stdout is not None
        for _ in range(30):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert (open_table(path).read(0, 10) == 3).all()
    assert {
        p.name for p in tmp_path.iterdir() if not (p.name.startswith(".t.") and p.name.endswith(".tmp"))
    } == {"t"}


def test_progress_is_the_size_of_the_file(tmp_path: Path) -> None:
    written: list[int] = []
    path = write(
        tmp_path / "t", np.ones((50_000, 30), np.float32), keys=np.arange(50_000), progress=written.append
    )
    assert sum(written) == path.stat().st_size and len(written) > 1


def test_a_table_of_ten_gigabytes_opens_at_once(tmp_path: Path) -> None:
    """Holes of zeros: 40 million rows, 2.5e9 elements. The last row is where 32 bits would not reach."""
    rows, dim = 40_000_003, 64
    at_sums = 4096 + (rows + 1) * dim * 4
    blocks = -(-(at_sums - 4096) // 65536)
    sums = np.full(blocks, hashed(bytes(65536)), "<u8")
    last = bytearray((at_sums - 4096) % 65536 or 65536)
    struct.pack_into("<f", last, len(last) - 512, 2.5)  # the last row but the default one
    sums[-1] = hashed(bytes(last))
    fields = (1, 0, rows, dim, dim * 4, 0, 0, 4096, at_sums, at_sums, 0, 0, at_sums)
    header = struct.pack(
        "<8sIIqqqIIQQQQQQQQ", b"\x89JXT\r\n\x1a\n", *fields, at_sums + 8 * blocks, hashed(sums.tobytes())
    )
    path = tmp_path / "t"
    with path.open("wb") as out:
        out.write(with_header(header + bytes(4096 - len(header))))
        out.seek(at_sums - len(last))
        out.write(last)
        out.write(sums.tobytes())
    assert path.stat().st_size > 10e9
    start = time.perf_counter()
    table = open_table(path)
    assert time.perf_counter() - start < 1
    out = np.full((3, dim), np.nan, np.float32)
    table.lookup(np.array([0, rows - 1, rows // 2]), out)
    assert out[1, 0] == 2.5 and np.count_nonzero(out) == 1


@pytest.mark.parametrize("options", [{"memory": "prefault"}, {"memory": "huge"}, {"trusted": True}])
def test_ways_of_opening(options: Any, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5000, 20)).astype(np.float32)
    table = open_table(write(tmp_path / "t", rows), **options)
    np.testing.assert_array_equal(table.read(0, 5000), rows)
    table.forget_pages()
    np.testing.assert_array_equal(table.read(0, 5000), rows)


def test_locking_beyond_the_limit_says_what_to_do(tmp_path: Path) -> None:
    """Root may lock anything: the limit is asked for in a process without that capability."""
    path = write(tmp_path / "t", np.ones((50_000, 64), np.float32))
    script = (
        "import ctypes, resource, sys; from serving.tables import open_table, TableError\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))\n"
        "import os; os.getuid() == 0 and os.setuid(65534)\n"
        "try: open_table(sys.argv[1], memory='locked')\n"
        "except TableError as error: print(error)"
    )
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        if os.getuid() == 0 and parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o555)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60
    )
    assert "cannot be locked in memory (raise the limit: ulimit -l" in done.stdout, done
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft > path.stat().st_size or os.getuid() == 0:
        assert open_table(path, memory="locked").rows == 50_000


def test_versions_and_headers(tmp_path: Path) -> None:
    data = write(tmp_path / "t", np.ones((100, 5), np.float32)).read_bytes()
    cases: list[tuple[bytes, type[TableError], str]] = [
        (b"", DamagedTableError, "is not a table"),
        (b"\x93NUMPY" + data[6:], DamagedTableError, "is not a table"),
        (data.replace(b"\r\n", b"\n", 1), DamagedTableError, "is not a table"),
        (data[:4000], DamagedTableError, "is truncated: it has 4000 bytes, the header alone"),
        (data[:-1], DamagedTableError, "is truncated"),
        (data + b"\0", DamagedTableError, "is too long"),
        (
            with_header(data, version=("I", 8, 2)),
            TableVersionError,
            "version 2, this jaxrank reads",
        ),
        (data[:100] + b"\1" + data[101:], DamagedTableError, "its header has another checksum"),
        (data[:-1] + bytes([data[-1] ^ 1]), DamagedTableError, "list of checksums"),
    ]
    for name, (form, offset, value) in {
        "format": ("I", 12, 7),
        "rows": ("q", 16, -1),
        "many rows": ("q", 16, 2**63 - 1),
        "more rows": ("q", 16, 2**60),
        "dim": ("q", 24, 0),
        "large dim": ("q", 24, 2**62),
        "row bytes": ("q", 32, 24),
        "default": ("I", 40, 4),
        "keyed": ("I", 44, 1),
        "rows at": ("Q", 48, 0),
        "keys at": ("Q", 56, 2**63),
        "slots at": ("Q", 64, 0),
        "homes": ("Q", 72, 5),
        "slots": ("Q", 80, 5),
        "sums at": ("Q", 88, 2**64 - 64),
        "size": ("Q", 96, 10),
    }.items():
        cases.append(
            (with_header(data, x=(form, offset, value)), DamagedTableError, f"(?#{name})contradicts itself")
        )
    for content, error, message in cases:
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(error, match=message):
            open_table(tmp_path / "bad")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, np.ndarray, np.ndarray | None]]:
    """Bytes, rows and keys of one table without keys and one with keys, each of some blocks."""
    directory, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    made = {}
    for name, keys in [("dense", None), ("keyed", rng.permutation(10_000)[:3000])]:
        rows = rng.normal(size=(3000, 11)).astype(np.float32)
        path = write(directory / name, rows, keys=keys, default="zeros")
        made[name] = (path.read_bytes(), rows, keys)
    return made


def read_everything(table: Table, rows: np.ndarray, keys: np.ndarray | None) -> None:
    """Every row by id and by number, and what is not there: all as it was written."""
    ids = np.arange(len(rows)) if keys is None else keys
    out = np.empty_like(rows)
    table.lookup(ids, out)
    np.testing.assert_array_equal(out, rows)
    np.testing.assert_array_equal(table.read(0, len(rows)), rows)
    absent = np.array([20_000, -1])
    assert (table.find(absent) == -1).all()
    missing = np.empty((2, rows.shape[1]), np.float32)
    table.lookup(absent, missing)
    assert not missing.any()


@pytest.mark.parametrize("name", ["dense", "keyed"])
@settings(max_examples=150, deadline=None)
@given(damage=st.data())
def test_damaged_files_are_refused_or_right(
    name: str, whole: Any, damage: st.DataObject, tmp_path_factory: Any
) -> None:
    """Flipped, cut and added bytes, with a hash that fits where the header was changed: an error of this
    family, or what was written. A crash would end the test run."""
    data, rows, keys = whole[name]
    content = bytearray(data)
    in_header = st.integers(0, 119)
    for at in damage.draw(st.lists(in_header | st.integers(0, len(data) - 1), max_size=4)):
        content[at] ^= damage.draw(st.integers(1, 255))
    if damage.draw(st.booleans()):
        content = bytearray(with_header(bytes(content)))
    end = damage.draw(st.just(len(data)) | st.integers(0, len(data)))
    content = content[:end] + damage.draw(st.just(b"") | st.binary(max_size=100))
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    path.write_bytes(content)
    try:
        read_everything(open_table(path), rows, keys)
    except TableError:
        assert bytes(content) != data


def test_trusted_garbage_never_reads_outside(whole: Any, tmp_path: Path) -> None:
    """Without checksums a garbled index gives wrong rows or none: the process stays alive."""
    data, rows, keys = whole["keyed"]
    at_slots, at_sums = (struct.unpack_from("<Q", data, at)[0] for at in (64, 88))
    rng = np.random.default_rng(0)
    for _ in range(20):
        garbage = rng.integers(0, 256, at_sums - at_slots, np.uint8).tobytes()
        (tmp_path / "t").write_bytes(data[:at_slots] + garbage + data[at_sums:])
        table = open_table(tmp_path / "t", trusted=True)
        out = np.empty_like(rows)
        table.lookup(keys, out)
        assert np.isfinite(out).all()
        with pytest.raises(DamagedTableError, match="block of 64 KiB"):
            table.verify()


def test_compaction(tmp_path: Path) -> None:
    """Changed, inserted and deleted keys; the one who has the old table open keeps it."""
    rng = np.random.default_rng(0)
    for row_format in ("f32", "int8"):
        keys = rng.permutation(5000)[:2000]
        rows = rng.normal(size=(2000, 9)).astype(np.float32)
        path = write(tmp_path / "t", rows, row_format, keys, default=np.full(9, 4, np.float32))
        old = open_table(path)
        before = old.read(0, 2000)
        changed = np.concatenate([keys[:100], [10_000, 10_001]])
        fresh = rng.normal(size=(102, 9)).astype(np.float32)
        compact(old, path, changed=(changed, fresh), deleted=np.concatenate([keys[500:700], [-5]]))
        new = open_table(path)
        new.verify()
        assert (new.rows, new.default) == (2000 - 200 + 2, "row")
        np.testing.assert_array_equal(old.read(0, 2000), before)
        out = np.empty((2000, 9), np.float32)
        new.lookup(keys, out)
        np.testing.assert_array_equal(out[100:500], before[100:500])
        np.testing.assert_array_equal(out[700:], before[700:])
        np.testing.assert_array_equal(out[500:700], 4)
        np.testing.assert_allclose(
            out[:100], fresh[:100], atol=np.abs(fresh).max() / 254 if row_format == "int8" else 0
        )
    dense = open_table(write(tmp_path / "d", rows))
    compact(dense, tmp_path / "d", changed=(np.array([3]), np.ones((1, 9), np.float32)))
    assert (open_table(tmp_path / "d").read(3, 4) == 1).all()
    for wrong, message in [
        ({"deleted": np.array([1])}, "has no keys"),
        ({"changed": (np.array([2000]), np.ones((1, 9), np.float32))}, "has no row 2000"),
        ({"changed": (np.array([1, 1]), np.ones((2, 9), np.float32))}, "id 1 is changed or deleted twice"),
    ]:
        with pytest.raises(TableMismatchError, match=message):
            compact(dense, tmp_path / "d", **wrong)
