"""The C++ tests of the tables under the address sanitizer, with the kernels that are quickest to build. `make
sanitize` has all of them, and the other sanitizers."""

from pathlib import Path

from tests.native import build


def test_tables_under_sanitizers(tmp_path: Path) -> None:
    programs = build.build(tmp_path / "build", "address", every_kernel=False)
    tables = tmp_path / "tables"
    tables.mkdir()
    build.write_tables(tables)
    for program in build.PROGRAMS:
        build.run(programs, program, str(tables))
