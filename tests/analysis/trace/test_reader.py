"""Files as they come: containers, JSON noise, cuts, damage. Text in, events out."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunescope.analysis.trace import reader
from prunescope.analysis.trace.load import load
from prunescope.analysis.trace.reader import Source
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.errors import PrunescopeError
from tests.chrome import chrome, k, op, step

NOISE = {
    "list": [{"a": 1}, {"b": [{}, {}, {}]}, {"c": "},{"}],
    "text": 'a "quoted" },{ }] "traceEvents": [ \\ \\" end',
    "backslash": "\\",
}


def event(i: int, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": f"aten::op{i}", "pid": 1, "tid": 1, "ts": i * 10.5,
            "dur": 3.25, "args": {"External id": i, **NOISE}, **more}  # fmt: skip


EVENTS = [event(i) for i in range(7)]
# The nested key must not be taken for the list of events.
WHOLE = {
    "schemaVersion": 1, "nested": {"traceEvents": [{"ph": "X"}]}, "text": '"traceEvents": [',
    "traceEvents": EVENTS, "traceName": "}] },{", "after": {"x": [{"y": 1}, {"y": 2}]},
}  # fmt: skip


def read(path: Path) -> tuple[list[str], Source]:
    source = Source(path)
    return [e.name for block in source.blocks() for e in block], source


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


ALL_NAMES = [f"aten::op{i}" for i in range(7)]
PLAIN = json.dumps(WHOLE).encode()


def zipped(*names: str, data: bytes = PLAIN) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, gzip.compress(data) if name.endswith(".gz") else data)
    return buffer.getvalue()


FORMS = {
    "object.json": PLAIN,
    "indented.json": json.dumps(WHOLE, indent=2).encode(),
    "list.json": json.dumps(EVENTS).encode(),
    "compact.json": json.dumps(WHOLE, separators=(",", ":")).encode(),
    "mark.json": b"\xef\xbb\xbf" + PLAIN,
    "space.json": b" \r\n\t" + PLAIN + b"\n\n",
    "plain.json.gz": PLAIN,
    "zipped.json": gzip.compress(PLAIN),
    "members.json.gz": gzip.compress(PLAIN[:500]) + gzip.compress(PLAIN[500:]),
    "padded.json.gz": gzip.compress(PLAIN) + b"\0" * 100,
    "archive.zip": zipped("trace.json", "README.txt"),
    "archive": zipped("folder/trace.json.gz"),
    "events_last.json": json.dumps({"a": 1, "traceEvents": EVENTS}).encode(),
    "events_first.json": json.dumps({"traceEvents": EVENTS, "a": {"b": [{}]}}).encode(),
    "comma.json": b"[" + b",".join(json.dumps(e).encode() for e in EVENTS) + b",\n]",
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("block", [1, 37, 1000, 4 << 20])
def test_every_form_gives_the_same_events(
    name: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BLOCK", block)
    names, source = read(written(tmp_path / name, FORMS[name]))
    assert names == ALL_NAMES
    assert (source.cut, source.malformed, source.repaired) == (False, 0, False)


@pytest.mark.parametrize("block", [5, 4 << 20])
def test_metadata_before_and_after_the_events(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a duplicated key the last one counts, and infinities do not lose the rest."""
    text = (
        b'{"a": 1, "a": 2, "deviceProperties": [{"id": 0, "name": "X", "clock": Infinity}],'
        b'"traceEvents": [' + json.dumps(EVENTS[0]).encode() + b'], "a": 3, "b": [NaN, "NaN"]}'
    )
    monkeypatch.setattr(reader, "BLOCK", block)
    names, source = read(written(tmp_path / "t.json", text))
    assert names == ALL_NAMES[:1]
    assert source.meta == {
        "a": 3, "b": [None, "NaN"], "deviceProperties": [{"id": 0, "name": "X", "clock": None}],
    }  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    block=st.integers(1, 3000),
    noise=st.recursive(
        st.none() | st.text('{}[],"\\: traceEvents', max_size=20) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=12) | st.dictionaries(st.text("{}]", max_size=3), inner)
        ),
        max_leaves=25,
    ),
    spaces=st.sampled_from([None, 0, 3]),
)
def test_blocks_do_not_matter(block: int, noise: Any, spaces: int | None, tmp_path: Path) -> None:
    events = [event(i, noise=noise, args={"n": noise}) for i in range(5)]
    text = json.dumps({"m": noise, "traceEvents": events, "n": noise}, indent=spaces).encode()
    path = written(tmp_path / "t.json", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BLOCK", block)
        names, source = read(path)
    assert names == ALL_NAMES[:5]
    assert (source.cut, source.malformed) == (False, 0)
    assert source.meta == {"m": noise, "n": noise}


def test_many_nested_objects_in_one_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More `},{` and `}]` behind an event than a search from the end would try."""
    many = [event(i, args={"list": [[{"a": j}, {}] for j in range(200)]}) for i in range(7)]
    path = written(tmp_path / "t.json", json.dumps(many).encode())
    for block in (64, 4096, 4 << 20):
        monkeypatch.setattr(reader, "BLOCK", block)
        names, source = read(path)
        assert (names, source.cut) == (ALL_NAMES, False)


@pytest.mark.parametrize("block", [11, 4 << 20])
def test_broken_json_is_mended(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, infinities, control characters and bytes that are no UTF-8; a NaN in a name stays."""
    monkeypatch.setattr(reader, "BLOCK", block)
    text = (
        b'[{"ph":"X","cat":"cpu_op","name":"a, NaN ,\x01\t\xff","ts":1,"dur":2,"args":{"x":NaN,'
        b'"y":[-Infinity, Infinity]}},{"ph":"X","name":"b","ts":NaN,"dur":1}]'
    )
    source = Source(written(tmp_path / "t.json", text))
    first, second = (e for events in source.blocks() for e in events)
    assert first.name == "a, NaN ,  �"
    assert (second.ts, second.dur) == (None, 1)
    assert (source.repaired, source.malformed, source.cut) == (True, 0, False)


@pytest.mark.parametrize("block", [11, 4 << 20])
@pytest.mark.parametrize(
    "bad",
    [b'{"ph": "X", @ }', b'{"name": "\\ud800"}', b'{"ts": 1,}', b'{"args": 5}',
     b'{"name": null}', b"[1, 2]", b'{"a":' * 3000 + b"1" + b"}" * 3000],
    ids=lambda b: b[:20].decode(),
)  # fmt: skip
def test_an_event_that_cannot_be_read_is_dropped_and_counted(
    bad: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BLOCK", block)
    around = [json.dumps(e).encode() for e in EVENTS]
    text = b"[" + b", ".join([*around[:3], bad, *around[3:]]) + b"]"
    names, source = read(written(tmp_path / "t.json", text))
    assert names == ALL_NAMES
    assert (source.malformed, source.cut) == (1, False)


GPU = json.dumps(
    chrome(step(0, *(op("aten::mm", [4, 5], [5, 6], kernels=[k(us=7)]) for _ in range(3))))
).encode()


def usable(path: Path) -> Trace | None:
    """Return the trace, or None where it was refused; no other exception may come."""
    try:
        return load(path)
    except PrunescopeError:
        return None


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_cut_anywhere_gives_a_part_or_an_error(name: str, tmp_path: Path) -> None:
    data = gzip.compress(GPU) if name.endswith("gz") else GPU
    seen = set()
    for size in range(0, len(data), 3 if name.endswith("gz") else 17):
        trace = usable(written(tmp_path / name, data[:size]))
        if trace is not None:
            assert trace.source.cut, size
            seen.add(len(trace.device["ts"]))
    assert seen >= {1, 2}  # some cuts leave a kernel or two
    whole = usable(written(tmp_path / name, data))
    assert whole is not None
    assert not whole.source.cut


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    at=st.integers(0, 10**6), junk=st.binary(max_size=30), form=st.sampled_from(sorted(FORMS)),
    drop=st.integers(0, 30),
)  # fmt: skip
def test_damage_is_a_part_or_an_error(
    at: int, junk: bytes, form: str, drop: int, tmp_path: Path
) -> None:
    data = FORMS[form]
    at %= len(data)
    trace = usable(written(tmp_path / "t", data[:at] + junk + data[at + drop :]))
    assert trace is None or 1 <= len(trace.ops["ts"]) <= len(EVENTS)


HEADS = [b"", b"[", b"{", b"\x1f\x8b\x08", b"PK\x03\x04", b'{"traceEvents":[', b'{"traceEvents":',
         b"[{", b'[{"a":"']  # fmt: skip


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200), head=st.sampled_from(HEADS))
def test_any_bytes_are_an_error(data: bytes, head: bytes, tmp_path: Path) -> None:
    assert usable(written(tmp_path / "t", head + data)) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"), (b" \n", "empty"), (gzip.compress(b""), "empty"),
        (b"hello", "not a Chrome trace"), (b"{}", "not a Chrome trace"),
        (b"\xff\xfe[\0", "not a Chrome trace"), (b'{"a": [1]}', "not a Chrome trace"),
        (b'{"traceEvents": {"a": 1}}', "not a list"), (b"[]", "no device events"),
        (b'{"traceEvents": []}', "no device events"), (b"[1, 2, null]", "no device events"),
        (b"[" * 100_000, "cut off"), (b'{"a":' * 100_000, "not a Chrome trace"),
        (zipped("a.json", "b.json"), "2 traces"), (zipped("a.txt"), "holds no trace|0 traces"),
        (zipped("a.json")[:60], "not a readable zip: it is cut off or damaged"),
        (zipped(), "a zip without any file"),
        (gzip.compress(PLAIN)[:15], "not a Chrome trace"),
        (lzma.compress(PLAIN), "t.json is packed with xz, which is not read"),
        (bz2.compress(PLAIN), "t.json is packed with bzip2, which is not read"),
    ],
    ids=range(20),
)  # fmt: skip
def test_what_is_no_trace_says_why(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match=says) as error:
        load(written(tmp_path / "t.json", data))
    assert "hint:" in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="no such file"):
        load(tmp_path / "absent.json")
    with pytest.raises(PrunescopeError, match="neither a trace nor a run"):
        load(tmp_path)


@pytest.mark.parametrize("head", [b"", b"[", b'{"traceEvents": [', b'[{"a": "', b'[{"ph":"X"}]'])
def test_a_bomb_ends_in_bounded_memory(
    head: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB of spaces in 65 kB of gzip: an error as soon as the bound is passed."""
    monkeypatch.setattr(reader, "MAX_EVENT", 4 << 20)
    monkeypatch.setattr(reader, "BLOCK", 1 << 18)
    squeeze = zlib.compressobj(9, wbits=31)
    spaces = b" " * (1 << 20)
    data = squeeze.compress(head) + b"".join(squeeze.compress(spaces) for _ in range(64))
    path = written(tmp_path / "t.json.gz", data + squeeze.flush())
    tracemalloc.start()
    try:
        with pytest.raises(PrunescopeError, match="no end of an event|200 times its size"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 5 * reader.MAX_EVENT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("block", [37, 4 << 20])
@pytest.mark.parametrize(
    ("behind", "size"),
    [(b"", 0), (b" \n\0\0", 0), (b"\ngarbage }", 9), (b"\n" + PLAIN, len(PLAIN)), (b"{{{", 3),
     (b'"', 1)],
)  # fmt: skip
@pytest.mark.parametrize("whole", [PLAIN, FORMS["list.json"]], ids=["object", "list"])
def test_what_stands_behind_the_end_is_counted_and_not_read(
    whole: bytes, behind: bytes, size: int, block: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The trace is whole, with the metadata behind its events."""
    monkeypatch.setattr(reader, "BLOCK", block)
    names, source = read(written(tmp_path / "t.json", whole + behind))
    assert names == ALL_NAMES
    assert (source.cut, source.behind) == (False, size)
    if whole is PLAIN:
        assert source.meta["after"] == WHOLE["after"]


def test_more_than_one_event_may_hold_stands_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_EVENT", 1000)
    monkeypatch.setattr(reader, "BLOCK", 100)
    small = json.dumps({"traceEvents": [], "a": 1}).encode()
    _, source = read(written(tmp_path / "t.json", small + b"x" * 5000))
    assert (source.behind, source.meta, source.cut) == (5000, {"a": 1}, False)
