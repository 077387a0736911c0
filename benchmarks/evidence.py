"""Keep the runs behind a page in one small file, and give them back as they were.

    python benchmarks/evidence.py traces/sweep sweep     # writes benchmarks/runs/sweep.tar.xz

In: a folder of runs. Out: benchmarks/runs/NAME.tar.xz with all files of the folder, in the order of
their names and without times or owners. A trace is trimmed as `prunescope bundle` trims it, and its
events lie in columns: each kind of event once, then for every event its kind, and for the events of
each kind the nanoseconds since the event before and the duration. What is alike lies together and
so packs well, six times as small as a gzipped trace; unpacked, each trace has the bytes that
trimming gave it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import lzma
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from prunescope.analysis.bundle.trim import trimmed_json

RUNS = HERE / "runs"
TRACE, COLUMNS = ".trace.json.gz", ".columns.json"
# Files that a command leaves to resume or to draw, from which nothing is computed.
_LEFT_OUT = re.compile(r"\.lock$|\.log$|\.png$|(^|/)report/|\.safetensors$")
_TIMES = re.compile(rb'"ts":(\d+\.\d+)(?:,"dur":(\d+\.\d+))?')
_EVENTS = re.compile(rb'(.*?"traceEvents":)(\[.*\])(.*)', re.DOTALL)
# Digits of a number that is kept: how a machine adds and multiplies many shows in the last few.
_DIGITS = 7
_SMALLEST = 9 | lzma.PRESET_EXTREME


def rounded(value: Any) -> Any:
    """Return JSON values with the digits of their numbers that every machine gives alike."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


class Columns(msgspec.Struct):
    """The events of a trace in columns, and the text on either side of them.

    `kinds` are the texts before and behind the times of an event, `kind` the number of each event's
    kind. `since` (ns after the event before) and `dur` (ns, −1 without one) have an entry an event,
    sorted by kind, as `_planes` writes them. An event without times of this form is a kind of its
    own, with nothing behind them.
    """

    before: str
    kinds: list[tuple[str, str]]
    kind: bytes
    since: bytes
    dur: bytes
    behind: str


def pack(folder: Path, target: Path) -> None:
    """Write the files of a folder of runs into a .tar.xz, the same bytes for the same files."""
    files: dict[str, bytes] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.endswith(TRACE):
            text = trimmed_json(path)
            columns = msgspec.msgpack.encode(into_columns(text))
            assert out_of_columns(columns) == text, f"{name} does not come back as it was"
            files[name.removesuffix(TRACE) + COLUMNS] = columns
        elif not _LEFT_OUT.search(name):
            files[name] = path.read_bytes()
    # Columns behind each other, so that the next trace finds its kinds in the one before.
    order = sorted(files, key=lambda name: (name.endswith(COLUMNS), name))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in order:
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lzma.compress(packed.getvalue(), preset=_SMALLEST))


@contextlib.contextmanager
def unpacked(name: str) -> Iterator[Path]:
    """Give the runs of benchmarks/runs/NAME.tar.xz in a folder of that name, until the end."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / name
        with tarfile.open(RUNS / f"{name}.tar.xz") as tar:
            tar.extractall(folder, filter="data")
        for path in sorted(folder.rglob(f"*{COLUMNS}")):
            trace = path.with_name(path.name.removesuffix(COLUMNS) + TRACE)
            text = out_of_columns(path.read_bytes())
            trace.write_bytes(gzip.compress(text, compresslevel=6, mtime=0))
            path.unlink()
        yield folder


def into_columns(text: bytes) -> Columns:
    """Return the columns of a trimmed trace."""
    match = _EVENTS.fullmatch(text)
    assert match is not None, "a trimmed trace has events"
    before, events, behind = match.groups()
    numbers: dict[tuple[str, str], int] = {}
    rows, last = [], 0
    for event in msgspec.json.decode(events, type=list[msgspec.Raw]):
        kind, begin, dur = _split(bytes(event), last)
        rows.append((numbers.setdefault(kind, len(numbers)), begin - last, dur))
        last = begin
    kind, since, dur = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    order = np.argsort(kind, kind="stable")
    return Columns(
        before=before.decode(),
        kinds=list(numbers),
        kind=_planes(kind),
        since=_planes(since[order]),
        dur=_planes(dur[order]),
        behind=behind.decode(),
    )


def out_of_columns(data: bytes) -> bytes:
    """Return the trimmed trace whose columns these are, as JSON."""
    columns = msgspec.msgpack.decode(data, type=Columns)
    kinds = [(head.encode(), tail.encode()) for head, tail in columns.kinds]
    kind = _numbers(columns.kind)
    since, dur = np.empty_like(kind), np.empty_like(kind)
    order = np.argsort(kind, kind="stable")
    since[order], dur[order] = _numbers(columns.since), _numbers(columns.dur)
    events = []
    for number, begin, took in zip(
        kind.tolist(), since.cumsum().tolist(), dur.tolist(), strict=True
    ):
        head, tail = kinds[number]
        events.append(head + _times(begin, took) + tail if tail else head)
    text = b"[" + b",".join(events) + b"]"
    return columns.before.encode() + text + columns.behind.encode()


def _planes(numbers: np.ndarray) -> bytes:
    """Return whole numbers as eight planes, of the lowest bytes first; signs are the lowest bits.

    The higher bytes of neighbours are alike, so that a plane of them packs to nearly nothing.
    """
    folded = ((numbers << 1) ^ (numbers >> 63)).astype("<u8")
    return folded.view(np.uint8).reshape(-1, 8).T.tobytes()


def _numbers(planes: bytes) -> np.ndarray:
    """Return the whole numbers that `_planes` wrote."""
    folded = np.frombuffer(planes, np.uint8).reshape(8, -1).T.copy().view("<u8").ravel()
    return (folded >> np.uint64(1)).astype(np.int64) ^ -(folded & np.uint64(1)).astype(np.int64)


def _split(event: bytes, last: int) -> tuple[tuple[str, str], int, int]:
    """Return the kind of an event, its beginning in ns, and its duration in ns or −1.

    An event whose times are written in another way is a kind of its own, at the time of the last.
    """
    match = _TIMES.search(event)
    if match is not None:
        begin, dur = _ns(match[1]), -1 if match[2] is None else _ns(match[2])
        head, tail = event[: match.start()], event[match.end() :]
        if head + _times(begin, dur) + tail == event:
            return (head.decode(), tail.decode()), begin, dur
    return (event.decode(), ""), last, -1


def _ns(text: bytes) -> int:
    whole, _, part = text.partition(b".")
    return int(whole) * 1000 + int((part + b"000")[:3])


def _times(begin: int, dur: int) -> bytes:
    """Return the times of an event as a trace writes them, in µs."""
    text = b'"ts":' + _us(begin)
    return text if dur < 0 else text + b',"dur":' + _us(dur)


def _us(ns: int) -> bytes:
    return f"{ns // 1000}.{f'{ns % 1000:03d}'.rstrip('0') or '0'}".encode()


def main() -> None:
    """Pack the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="runs")
    parser.add_argument("name", help="of the page")
    options = parser.parse_args()
    target = RUNS / f"{options.name}.tar.xz"
    pack(options.folder, target)
    sys.stderr.write(f"{target.name}: {target.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
