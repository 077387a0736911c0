"""An SQLite export of Nsight Systems, opened as hostile input.

In: a file that `nsys export --type sqlite` wrote. Out: the columns of its plain tables, in blocks
of rows, and the strings that their ids name. The file is opened read-only and immutable: changes in
a WAL next to it are not read, and a file with an unfinished change is refused. No view, trigger,
generated column or function of its schema runs, and the size of the file bounds the work and memory
of every query.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError

MAGIC = b"SQLite format 3\0"
SUFFIX, REPORT_SUFFIXES = ".sqlite", (".nsys-rep", ".qdrep")
EXPORT = "nsys export --type sqlite"
AGAIN = f"export the report again: `{EXPORT} REPORT.nsys-rep`"
_HEADER = 100  # bytes
_MAX_VALUE = 16 << 20  # bytes of a row: those of Nsight Systems have a few hundred
_MAX_TEXT = 1 << 14  # characters of a name that are read, as in a Chrome trace
_MIN_ROW = 8  # bytes of the smallest row in a table of ours: three columns, their types, its cell
# Instructions that a query may take: reading a row takes less than one a byte.
_STEPS, _STEPS_PER_BYTE = 10_000_000, 20
_EACH = 100_000  # instructions between two checks of the count
_BLOCK = 2048  # rows: as objects of Python they take five times the memory of the columns
_IDS_AT_ONCE = 500
_FUNCTIONS = {"substr", "count", "typeof"}
_LONG = ("text", "jsonText", "binaryData")  # columns whose values may be of any length
_PRAGMAS = ("trusted_schema=OFF", "query_only=ON", "cell_size_check=ON", "mmap_size=0",
            "temp_store=MEMORY", "cache_size=-2048")  # fmt: skip
_DENIED = "an export of Nsight Systems has plain tables only"
Rows = list[tuple[Any, ...]]
_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed when this process ends


def is_nsys(path: Path) -> bool:
    """Return whether a file begins as an SQLite database does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def is_report(path: Path) -> bool:
    """Return whether a file is named like a report of Nsight Systems, which only `nsys` reads."""
    return path.name.endswith(REPORT_SUFFIXES)


@lru_cache(maxsize=64)
def exported(path: Path) -> Path:
    """Export a report of Nsight Systems to SQLite with `nsys`, and return the new file.

    It lies in a temporary folder that is removed when this process ends. Raises PrunescopeError
    where `nsys` is missing or fails.
    """
    program = shutil.which("nsys")
    if program is None:
        raise PrunescopeError(
            f"{path.name} is a report of Nsight Systems, which only its own tools read",
            hint=f"export it where nsys is installed: `{EXPORT} {path.name}`, and give the .sqlite",
        )
    folder = tempfile.TemporaryDirectory(prefix="prunescope-nsys-")
    _folders.append(folder)
    export = Path(folder.name) / f"{path.stem}{SUFFIX}"
    command = [program, "export", "--type", "sqlite", "--force-overwrite", "true",
               "--output", str(export), str(path.absolute())]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode or not is_nsys(export):
        problem = (
            f"nsys could not export it (exit code {done.returncode})"
            if done.returncode
            else "nsys ended without an error and wrote no SQLite database"
        )
        raise PrunescopeError(
            f"{path.name}: {problem}",
            hint=f"`{EXPORT} {path.name}` says why; an older nsys reads no newer report",
        )
    return export


def reports_in(folder: Path) -> list[Path]:
    """List the reports of Nsight Systems in a folder that have no export next to them."""
    return sorted(
        file
        for file in folder.iterdir()
        if is_report(file) and file.is_file() and not file.with_suffix(SUFFIX).is_file()
    )


class Database:
    """The plain tables of one file.

    `tables` maps their names to those of their columns. `has_wal` is set if changes in a WAL next
    to the file were not read.
    """

    def __init__(self, path: Path, wanted: Iterable[str]) -> None:
        """Open those of the `wanted` tables that the file has.

        Raises PrunescopeError where the file is no whole database, or one of the tables is not a
        plain table.
        """
        self.path = path
        self.size = path.stat().st_size
        self._refuse_cut()
        self._refuse_unfinished()
        self._steps = 0
        self.has_wal = _is_filled(path.with_name(path.name + "-wal"))
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with self._explain_errors():
            self._sql = sqlite3.connect(uri, uri=True, isolation_level=None)
            self._sql.text_factory = lambda text: text.decode("utf-8", "replace")
            self._sql.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)
            self._sql.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            for pragma in _PRAGMAS:
                self._sql.execute(f"PRAGMA {pragma}")
            self._sql.set_progress_handler(self._is_over_budget, _EACH)
            self._sql.set_authorizer(self._authorize)
            self.tables = self._plain_tables(set(wanted))

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, table: str, *columns: str) -> bool:
        """Return whether the file has a table with these columns."""
        return set(columns) <= set(self.tables.get(table, ()))

    def lacks(self, table: str, *columns: str) -> list[str]:
        """List the columns that a table lacks; empty if the table itself is missing."""
        return [column for column in columns if column not in self.tables.get(table, columns)]

    def count(self, table: str, where: str = "") -> int:
        """Count the rows of a table, 0 if it is missing; `where` is a trusted SQL expression."""
        if table not in self.tables:
            return 0
        query = f'SELECT COUNT(*) FROM "{table}" NOT INDEXED' + (f" WHERE {where}" if where else "")
        with self._explain_errors():
            return int(self._query(query).fetchone()[0])

    def rows(
        self, table: str, columns: Sequence[str], *, where: str = "", group: bool = False
    ) -> Iterator[Rows]:
        """Read rows of a table in blocks; none if the table is missing.

        Raises PrunescopeError where the file is damaged.

        Args:
            table: The name of the table.
            columns: The names of its columns. A column that the table lacks is None in all
                rows; of a text or payload only the first characters are read.
            where: A trusted SQL expression, empty for all rows.
            group: Whether to return distinct rows only.
        """
        there = self.tables.get(table)
        if there is None:
            return
        chosen = ", ".join(_column_sql(column) if column in there else "NULL" for column in columns)
        query = f'SELECT {"DISTINCT " if group else ""}{chosen} FROM "{table}" NOT INDEXED'
        query += f" WHERE {where}" if where else ""
        count = 0
        with self._explain_errors():
            cursor = self._query(query)
            while block := cursor.fetchmany(_BLOCK):
                count += len(block)
                if count * _MIN_ROW > self.size:
                    raise self.damaged("one of its tables has more rows than its bytes can hold")
                yield block

    def strings(self, ids: Iterable[int]) -> dict[int, str]:
        """Look up the strings of some ids; an id that names none is left out."""
        if not self.has(STRINGS, "id", "value"):
            return {}
        strings: dict[int, str] = {}
        wanted = sorted(set(ids))
        for begin in range(0, len(wanted), _IDS_AT_ONCE):
            some = ", ".join(map(str, wanted[begin : begin + _IDS_AT_ONCE]))
            for block in self.rows(STRINGS, ("id", "value"), where=f'"id" IN ({some})'):
                strings.update((i, text) for i, text in block if isinstance(text, str))
        return {i: text[:_MAX_TEXT] for i, text in strings.items()}

    def _query(self, query: str) -> sqlite3.Cursor:
        """Start a query with a fresh budget of steps."""
        self._steps = 0
        return self._sql.execute(query)

    def _plain_tables(self, wanted: set[str]) -> Mapping[str, tuple[str, ...]]:
        """Return the columns of the wanted tables; refuse views and computed columns."""
        known = self._query("SELECT type, name, rootpage FROM sqlite_master").fetchall()
        plain: dict[str, tuple[str, ...]] = {}
        for kind, name, page in known:
            if name not in wanted or kind in ("index", "trigger"):
                continue
            if kind != "table" or not isinstance(page, int) or page <= 0:
                form = "virtual table" if kind == "table" else "view"
                raise self.damaged(f"{name} is a {form}, and {_DENIED}")
            columns = self._query(f'PRAGMA table_xinfo("{name}")').fetchall()
            if any(hidden for *_, hidden in columns):
                raise self.damaged(f"{name} has a computed column, and {_DENIED}")
            plain[name] = tuple(column[1] for column in columns)
        return plain

    def _authorize(
        self, action: int, first: str | None, second: str | None, _: str | None, source: str | None
    ) -> int:
        """Allow a part of a query if it only reads tables, and no view or trigger asks for it.

        SQLite calls this before each part of a query.
        """
        if source is not None:
            return sqlite3.SQLITE_DENY
        fine = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)
        fine = fine or action == sqlite3.SQLITE_PRAGMA and first == "table_xinfo"
        fine = fine or action == sqlite3.SQLITE_FUNCTION and second in _FUNCTIONS
        return sqlite3.SQLITE_OK if fine else sqlite3.SQLITE_DENY

    def _is_over_budget(self) -> bool:
        """Return whether a query took more steps than a file of this size can need."""
        self._steps += _EACH
        return self._steps > _STEPS + _STEPS_PER_BYTE * self.size

    def _refuse_cut(self) -> None:
        """Refuse a file with fewer pages than its header counts: it was cut off."""
        with self.path.open("rb") as file:
            head = file.read(_HEADER)
        page = int.from_bytes(head[16:18], "big")
        whole = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
        counted = head[24:28] == head[92:96]
        if len(head) < _HEADER or counted and self.size < whole:
            raise PrunescopeError(
                f"{self.path.name} is cut off: {self.size:,} of {whole:,} bytes are there",
                hint="copy the file again, whole",
            )

    def _refuse_unfinished(self) -> None:
        """Refuse a file next to a journal that is not empty and whose header was not wiped.

        An unfinished change has then overwritten the rows that the journal holds.
        """
        journal = self.path.with_name(f"{self.path.name}-journal")
        with suppress(OSError, ValueError), journal.open("rb") as file:
            if file.read(1) not in (b"", b"\0"):
                raise self.damaged(
                    f"it is being written, or its writing was broken off: {journal.name} lies "
                    "next to it"
                )

    def damaged(self, problem: str) -> PrunescopeError:
        """Return an error about this file, which another export would cure."""
        return PrunescopeError(f"{self.path.name}: {problem}", hint=AGAIN)

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Turn whatever SQLite finds wrong with the file into an error with a hint."""
        try:
            yield
        except (sqlite3.Error, OverflowError, MemoryError, UnicodeDecodeError) as error:
            why = str(error)[:200] or type(error).__name__
            if isinstance(error, UnicodeDecodeError):  # of a message that quotes the file's bytes
                why = "its tables are described in no text"
            if self._steps > _STEPS + _STEPS_PER_BYTE * self.size:
                why = "a query over it does not end"
            raise self.damaged(f"the database cannot be read ({why})") from None


STRINGS = "StringIds"


def _column_sql(column: str) -> str:
    """Return the SQL of a column; long texts are cut while they are read."""
    return f'substr("{column}", 1, {_MAX_TEXT})' if column in _LONG else f'"{column}"'


def _is_filled(path: Path) -> bool:
    """Return whether a file exists and is not empty."""
    with suppress(OSError, ValueError):
        return path.stat().st_size > 0
    return False
