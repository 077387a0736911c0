"""Databases that are not what Nsight Systems exports: refused in one sentence, and no code runs."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.nsys_file import Database
from prunescope.taxonomy.errors import PrunescopeError
from tests.hostile.case import ATTACK, Case, answer
from tests.nsys import TABLES, Export

KERNEL, RUNTIME = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME"
COUNT = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x)"
Change = Callable[[sqlite3.Connection], object]
Bytes = Callable[[bytes], bytes]


def whole(path: Path, *, kernels: int = 3, name: str = "gemm") -> Path:
    """A database that is analysed: kernels of 100 ns, 100 ns apart."""
    out = Export(path)
    for i in range(kernels):
        row = {"start": 1000 + 200 * i, "end": 1100 + 200 * i, "correlationId": i + 1,
               "globalPid": 7 << 24, "demangledName": out.string(name)}  # fmt: skip
        out.add(KERNEL, [row])
        call = {"start": 10 * i, "end": 10 * i + 5, "globalTid": (7 << 24) | 1, "nameId": 1}
        out.add(RUNTIME, [{**call, "correlationId": i + 1}])
    out.close()
    return path


def changed(path: Path, change: Change) -> Path:
    whole(path)
    sql = sqlite3.connect(path, isolation_level=None)
    sql.execute("PRAGMA writable_schema = ON")
    change(sql)
    sql.close()
    return path


def refused(path: Path) -> str:
    with pytest.raises(PrunescopeError) as found:
        analyze(path)
    assert "\n" not in found.value.problem
    assert str(path.parent) not in str(found.value), "no path of the machine"
    assert found.value.exit_code == 2
    return found.value.problem


def of_sql(*statements: str) -> Change:
    return lambda sql: [sql.execute(one) for one in statements]


def instead(table: str, query: str) -> Change:
    """A view in place of a table."""
    return of_sql(f"DROP TABLE {table}", f"CREATE VIEW {table} AS {query}")


REFUSED: dict[str, tuple[Change, str]] = {
    "a view that never ends": (
        instead(KERNEL, f"{COUNT} SELECT n AS start, n AS end, 0 AS deviceId FROM x"), "is a view"),
    "a view of names": (
        instead("StringIds", "SELECT 1 AS id, zeroblob(1000000000) AS value"), "is a view"),
    "a virtual table": (
        of_sql(f"DROP TABLE {KERNEL}", f"CREATE VIRTUAL TABLE {KERNEL} USING fts5(start, end)"),
        "is a virtual table"),
    "a computed column": (
        of_sql(f"DROP TABLE {KERNEL}",
               f"CREATE TABLE {KERNEL} (start INT, end INT, deviceId INT, "
               "demangledName AS (hex(zeroblob(100000000))))"),
        "has a computed column"),
    "no tables at all": (
        of_sql(*(f"DROP TABLE {name}" for name in TABLES)), "holds no kernel of a GPU"),
    "no kernels": (of_sql(f"DELETE FROM {KERNEL}"), "holds no kernel of a GPU"),
    "a text too large": (
        of_sql("UPDATE StringIds SET value = hex(zeroblob(12000000)) WHERE id = 1"),
        "cannot be read"),
    "a schema that is no SQL": (
        of_sql(f"UPDATE sqlite_master SET sql = 'CREATE TABLE x(' WHERE name = '{KERNEL}'"),
        "cannot be read"),
    "a table that begins at no page": (
        of_sql(f"UPDATE sqlite_master SET rootpage = 99999 WHERE name = '{KERNEL}'"),
        "cannot be read"),
    "all times are texts": (
        of_sql(f"UPDATE {KERNEL} SET start = 'soon', end = 'later'"), "invalid start time"),
    "too many devices": (
        of_sql(f"{COUNT} INSERT INTO {KERNEL} SELECT n, n + 1, n, 1, NULL, 1, n, 7, "
               + ", ".join(["1"] * 20) + " FROM x LIMIT 2000"), "holds 2,001 devices"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_forged_database_is_refused(name: str, tmp_path: Path) -> None:
    change, problem = REFUSED[name]
    assert problem in refused(changed(tmp_path / "forged.sqlite", change))


ANALYSED: dict[str, Change] = {
    "triggers": of_sql(
        f"CREATE TRIGGER t AFTER INSERT ON {KERNEL} BEGIN DELETE FROM {RUNTIME}; END"),
    "views beside the tables": of_sql(f"CREATE VIEW other AS {COUNT} SELECT n FROM x"),
    "an index on a function": of_sql(f"CREATE INDEX i ON {KERNEL} (abs(start))"),
    "times of other types": of_sql(
        f"UPDATE {KERNEL} SET start = 'soon' WHERE correlationId = 2"),
    "times out of range": of_sql(
        f"UPDATE {KERNEL} SET start = {-(1 << 63)}, end = {(1 << 63) - 1} WHERE correlationId = 2"),
    "a kernel that ends before it begins": of_sql(
        f"UPDATE {KERNEL} SET end = 1 WHERE correlationId = 2"),
    "grids, registers and ids of other types": of_sql(
        f"UPDATE {KERNEL} SET gridX = 'wide', registersPerThread = -5, streamId = 1.5, "
        "correlationId = x'00ff', globalPid = NULL WHERE correlationId = 2"),
    "names that are none": of_sql(
        "UPDATE StringIds SET value = x'ff00ff'", f"UPDATE {KERNEL} SET demangledName = 10 "
        "WHERE correlationId = 2", f"UPDATE {KERNEL} SET demangledName = 'gemm' WHERE "
        "correlationId = 3"),
    "bytes that are no UTF-8": of_sql("UPDATE StringIds SET value = CAST(x'ff41fe' AS TEXT)"),
    "a name that attacks what shows it": of_sql(
        f"UPDATE StringIds SET value = '{ATTACK.replace(chr(39), chr(39) * 2)}'"),
    "ranges that are forged": of_sql(
        "INSERT INTO NVTX_EVENTS (start, end, eventType, text, globalTid, textId) VALUES "
        f"(0, 50, 59, 'aten::mm, op_id = {'9' * 40}, sizes = [[[[', 117440513, 3), "
        "(1, 2, 59, x'00', 117440513, 9), (-5, 9e99, 59, 'a', 117440513, 1), "
        f"(0, 60, 59, '{{''Module'': ''a'', ''Inputs'': [[{'9' * 30}]], ''weight'': [1, 9]', "
        "117440513, 1), (0, 7, 'x', 'step_1', 'thread', NULL)"),
    "properties of another type": of_sql(
        "INSERT INTO TARGET_INFO_GPU (id, name, smCount) VALUES ('a', x'00', 1e300), (0, 5, 'x')",
        "INSERT INTO TARGET_INFO_CUDA_DEVICE VALUES ('a', 'b', 'c', 1, 2)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANALYSED)
def test_odd_values_are_left_out(name: str, tmp_path: Path) -> None:
    case = Case(name, lambda folder: changed(folder / "odd.sqlite", ANALYSED[name]), text=True)
    assert answer(case, tmp_path) in (0, 3)


DAMAGED: dict[str, Bytes] = {
    "cut within a page": lambda data: data[: len(data) // 2 - 77],
    "cut after the header": lambda data: data[:100],
    "cut within the header": lambda data: data[:50],
    "the header alone says SQLite": lambda data: data[:16] + b"\0" * 4096,
    "pages of zeros": lambda data: data[:4096] + b"\0" * (len(data) - 4096),
    "pages of ones": lambda data: data[:4096] + b"\xff" * (len(data) - 4096),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    path = whole(tmp_path / "whole.sqlite", kernels=300)
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(DAMAGED[name](path.read_bytes()))
    assert refused(damaged).startswith("damaged.sqlite")


def test_pages_that_point_at_themselves_end(tmp_path: Path) -> None:
    """An inner page of the kernels' tree whose 200 children are all one other inner page of 200:
    more rows than the file can hold, of which the reading ends."""
    path = whole(tmp_path / "whole.sqlite", kernels=20_000)
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    inner = [at for at in range(size, len(data), size) if data[at] == 5]
    assert inner, "a tree of kernels has inner pages"
    for at in inner:
        cells = int.from_bytes(data[at + 3 : at + 5], "big")
        first = int.from_bytes(data[at + 12 : at + 14], "big")
        target = data[at + first : at + first + 4]
        for cell in range(cells):
            place = at + int.from_bytes(data[at + 12 + 2 * cell : at + 14 + 2 * cell], "big")
            data[place : place + 4] = target
    path.write_bytes(data)
    case = Case("cycle", lambda _: path)
    assert answer(case, tmp_path) in (0, 2, 3)


def test_what_stands_in_a_wal_is_not_read(tmp_path: Path) -> None:
    path = whole(tmp_path / "wal.sqlite")
    sql = sqlite3.connect(path, isolation_level=None)
    sql.execute("PRAGMA journal_mode = WAL")
    sql.execute(f"DELETE FROM {KERNEL} WHERE correlationId > 1")
    before = sorted(one.name for one in tmp_path.iterdir())
    report = analyze(path).report
    assert sorted(one.name for one in tmp_path.iterdir()) == before, "nothing was written"
    sql.close()
    assert report.phases["trace"].kernels_per_step == [3]
    assert any("-wal" in warning for warning in report.warnings)


def test_a_file_whose_tables_are_in_a_wal_names_it(tmp_path: Path) -> None:
    path = changed(tmp_path / "wal.sqlite", of_sql(f"DROP TABLE {KERNEL}"))
    sql = sqlite3.connect(path, isolation_level=None)
    sql.execute("PRAGMA journal_mode = WAL")
    sql.execute(f"CREATE TABLE {KERNEL} (start INT, end INT, deviceId INT)")
    assert "(-wal) is not read" in refused(path)
    sql.close()


def test_a_change_that_was_not_finished_is_refused(tmp_path: Path) -> None:
    """A hot journal: SQLite has rows of 999 ns in the file, and would take them back."""
    path = whole(tmp_path / "hot.sqlite", kernels=3000)
    writer = """
import os, sqlite3, sys
sql = sqlite3.connect(sys.argv[1], isolation_level=None)
sql.execute("PRAGMA cache_size = 1")
sql.execute("BEGIN")
sql.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = start + 999")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", writer, str(path)], check=True)
    journal = tmp_path / "hot.sqlite-journal"
    before = journal.read_bytes()
    assert "hot.sqlite-journal" in refused(path)
    assert journal.read_bytes() == before
    journal.write_bytes(b"")
    assert len(load(path).device["ts"]) == 3000
    journal.write_bytes(b"\0" * 512)
    assert len(load(path).device["ts"]) == 3000


@pytest.mark.parametrize("name", ["a?mode=rw", "50% & more#1.sqlite", "ü.sqlite", "file:x.sqlite"])
def test_any_name_of_a_file_is_a_name(name: str, tmp_path: Path) -> None:
    assert len(load(whole(tmp_path / "plain").rename(tmp_path / name)).device["ts"]) == 3
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_memory_is_that_of_the_columns(tmp_path: Path) -> None:
    """Names of 20 MB in all that no kernel has are not read."""
    path = whole(tmp_path / "many.sqlite")
    sql = sqlite3.connect(path)
    sql.execute(
        f"{COUNT} INSERT INTO StringIds SELECT n + 9, hex(zeroblob(500)) FROM x LIMIT 20000"
    )
    sql.commit()
    sql.close()
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    load(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3_000_000


@pytest.mark.slow
def test_ten_million_rows(tmp_path: Path) -> None:
    """Ten million runtime calls that launch nothing: they are read, or refused in a sentence."""
    path = whole(tmp_path / "long.sqlite")
    sql = sqlite3.connect(path)
    sql.execute(f"{COUNT} INSERT INTO {RUNTIME} SELECT n, n + 1, 0, 117440513, n + 9, 1, 0, NULL "
                "FROM x LIMIT 10000000")  # fmt: skip
    sql.commit()
    sql.close()
    assert len(load(path).device["ts"]) == 3


def test_another_database_cannot_be_attached(tmp_path: Path) -> None:
    """Nor can a schema name one: by a view, a trigger, a virtual table or a statement."""
    secret = tmp_path / "secret.sqlite"
    with sqlite3.connect(secret) as other:
        other.execute("CREATE TABLE t AS SELECT 'nanosecondwire' AS value, 1 AS id")
    other.close()
    names = Path(whole(tmp_path / "whole.sqlite"))
    with Database(names, [KERNEL]) as base:
        for statement in (
            f"ATTACH '{secret}' AS x", f"VACUUM INTO '{tmp_path / 'copy'}'",
            "SELECT load_extension('x')", "SELECT readfile('/etc/passwd')",
            f"CREATE VIRTUAL TABLE temp.x USING csv(filename='{secret}')",
            "PRAGMA journal_mode=WAL",
        ):  # fmt: skip
            with pytest.raises(sqlite3.Error):
                base._sql.execute(statement).fetchall()
    assert not (tmp_path / "copy").exists()
    # SQLite makes no such view: the schema is written by hand.
    forged = changed(tmp_path / "forged.sqlite", of_sql(
        "DROP TABLE StringIds",
        "INSERT INTO sqlite_schema VALUES ('view', 'StringIds', 'StringIds', 0, "
        "'CREATE VIEW StringIds AS SELECT * FROM x.t')",
    ))  # fmt: skip
    assert "nanosecondwire" not in refused(forged)


def test_a_description_that_is_no_text(tmp_path: Path) -> None:
    """SQLite's message quotes the bytes, and Python cannot decode it."""
    path = whole(tmp_path / "x.sqlite")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE", b"CREATE \xff\xfe\xc3BLE"))
    assert "cannot be read" in refused(path)
