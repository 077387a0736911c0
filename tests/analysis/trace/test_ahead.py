"""A trace is unpacked by another thread while its events are read: the same bytes, the same end."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.unpack import Plain, Prefetched, unpacked

SIZE = 1 << 10


def test_the_blocks_are_those_of_the_stream(tmp_path: Path) -> None:
    """2.5 blocks of 1 KiB: two whole ones, a half, then nothing however often one asks."""
    text = bytes(range(256)) * 10
    (tmp_path / "a.gz").write_bytes(gzip.compress(text))
    with (tmp_path / "a.gz").open("rb") as file, ThreadPoolExecutor(1) as pool:
        ahead = Prefetched(unpacked(tmp_path / "a.gz", file), pool, SIZE)
        blocks = [ahead.read() for _ in range(5)]
    assert [len(block) for block in blocks] == [1024, 1024, 512, 0, 0]
    assert b"".join(blocks) == text
    assert not ahead.cut


def test_a_cut_is_known_with_the_end(tmp_path: Path) -> None:
    packed = gzip.compress(bytes(range(256)) * 10)
    (tmp_path / "a.gz").write_bytes(packed[:-12])
    with (tmp_path / "a.gz").open("rb") as file, ThreadPoolExecutor(1) as pool:
        ahead = Prefetched(unpacked(tmp_path / "a.gz", file), pool, SIZE)
        while ahead.read():
            pass
    assert ahead.cut


def test_an_error_of_the_file_is_raised_where_it_is_read() -> None:
    class Broken:
        def read(self, _: int) -> bytes:
            raise OSError(5, "input/output error")

    with ThreadPoolExecutor(1) as pool:
        ahead = Prefetched(Plain(Broken()), pool, SIZE)  # type: ignore[arg-type]
        with pytest.raises(OSError, match="input/output"):
            ahead.read()


def test_a_reader_that_stops_early_leaves_no_thread(tmp_path: Path) -> None:
    event = '{"ph":"X","cat":"cpu_op","name":"aten::mm","ts":1,"dur":1,"pad":"%s"}' % ("x" * 9000)
    (tmp_path / "a.json").write_text('{"traceEvents":[' + ",".join([event] * 2000) + "]}")
    before = threading.active_count()
    blocks = Source(tmp_path / "a.json").blocks()
    assert next(blocks)
    assert threading.active_count() == before + 1
    blocks.close()
    assert threading.active_count() == before
