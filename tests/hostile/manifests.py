"""Hostile manifests: every field of run.json with wrong values, and paths that lead elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import Case
from tests.hostile.material import changed, places, write_pair

WRONG: dict[str, Any] = {
    "gone": ..., "null": None, "true": True, "minus one": -1, "zero": 0, "a half": 0.5,
    "2^53": 2**53, "10^30": 10**30, "1e308": 1e308, "a text": "x", "an empty text": "",
    "a list": [], "a list of texts": ["x"], "an object": {}, "a mixed list": [1, "a", None],
    "nested": {"a": [{"b": {}}]}, "a way out": "../../../../etc/passwd", "absolute": "/etc/passwd",
}  # fmt: skip
Edit = Callable[[Path], Any]


def _edited(edit: Edit, variant: str = "pruned") -> Callable[[Path], Path]:
    """A case's `write`: a whole pair of runs, and then `edit` of the folder of one."""

    def write(folder: Path) -> Path:
        made = write_pair(folder / "run")
        edit(made / variant)
        return made

    return write


def _set(path: tuple[str | int, ...], value: Any) -> Edit:
    def edit(run: Path) -> None:
        file = run / "run.json"
        file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))

    return edit


def fields(example: dict[str, Any], *, every: int = 1) -> Iterator[Case]:
    """Every place in the manifest `example` with every wrong value, or one in `every` of them."""
    number = 0
    for path in places(example):
        for name, value in WRONG.items():
            number += 1
            if number % every == 0:
                where = ".".join(map(str, path))
                yield Case(f"run.json: {where} is {name}", _edited(_set(path, value)))


def texts() -> Iterator[Case]:
    """A run.json that is no JSON, or more than it."""
    bodies = {
        "empty": b"", "cut": b'{"schema": 1, "variant"', "a list": b"[]", "null": b"null",
        "another schema": b'{"schema": 2}', "schema true": b'{"schema": true}',
        "nothing else": b'{"schema": 1}', "deep": b'{"schema":1,"a":' + b"[" * 100_000,
        "deep and closed": b'{"schema":1,"a":' + b"[" * 900 + b"]" * 900 + b"}",
        "utf-16": '{"schema": 1}'.encode("utf-16"), "not utf-8": b'{"schema": 1, "tool": "\xff"}',
        "huge number": b'{"schema": 1, "parameters": ' + b"9" * 10_000 + b"}",
        "a mark": b"\xef\xbb\xbf{}",
    }  # fmt: skip
    for name, data in bodies.items():
        yield Case(
            f"run.json is {name}",
            _edited(lambda run, d=data: (run / "run.json").write_bytes(d)),
            (2,),
        )
    for name, text in {"NaN": "NaN", "an infinity": "-Infinity", "1e400": "1e400"}.items():
        for key in ("byte_per_s", "kernel_floor_ns", "zeros", "sparsity", "loss"):
            yield Case(
                f"run.json: {key} is {name}", _edited(lambda r, k=key, t=text: _raw(r, k, t))
            )
    yield Case(
        "run.json: every key twice",
        _edited(lambda r: _replace(r, '"batch":', '"batch":-1,"batch":')),
        (2,),
    )
    yield Case("run.json of 70 MB", _edited(_padded), (2,))


def _raw(run: Path, key: str, text: str) -> None:
    """The number at every `key`, written as `text`."""
    plain = json.loads((run / "run.json").read_text())
    for path in [p for p in places(plain) if p[-1] == key]:
        plain = changed(plain, path, "@@@")
    (run / "run.json").write_text(json.dumps(plain).replace('"@@@"', text))


def _replace(run: Path, old: str, new: str) -> None:
    file = run / "run.json"
    file.write_text(file.read_text().replace(old, new))


def _padded(run: Path) -> None:
    with (run / "run.json").open("a") as file:
        file.write(" " * (70 << 20))


def many() -> Iterator[Case]:
    """Lists far longer than any run has."""
    phase = ("phases", "prefill")
    yield Case("10^6 samples", _edited(_set((*phase, "samples_ns"), [1000] * 10**6)), (2,))
    yield Case("5,000 samples", _edited(_set((*phase, "samples_ns"), [1000] * 5000)), (0,))
    layers = list(range(20_000))
    yield Case("a map of 20,000 layers", _edited(_set(("layer_map",), layers)), (2,))
    yield Case("a map to one layer", _edited(_set(("layer_map",), [0] * 2000)))
    yield Case("a map to layers that are not there", _edited(_set(("layer_map",), [7, 9])))

    def phases(run: Path) -> None:
        plain = json.loads((run / "run.json").read_text())
        entry = plain["phases"]["prefill"]
        plain["phases"] = {f"p{i}": entry for i in range(5000)}
        (run / "run.json").write_text(json.dumps(plain))

    yield Case("5,000 phases of one trace", _edited(phases), (2,))


def ways_out() -> Iterator[Case]:
    """Paths out of the folder, links, and twins that are not one."""
    phase = ("phases", "prefill")
    outside = ("../prefill.trace.json.gz", "/etc/passwd", "..", ".", "a/b", "..\\..\\x", "C:\\x",
               "\0", "../dense/prefill.trace.json.gz", "x" * 5000)  # fmt: skip
    for path in outside:
        for key in ("trace", "eager_trace"):
            codes = (0, 2) if key == "eager_trace" and "C:" in path else (2,)
            yield Case(f"{key} is {path[:20]!r}", _edited(_set((*phase, key), path)), codes)
    for path in ("../../../../../../etc/run.json", "/etc/run.json", "/dev/zero", "", ".", "\0",
                 "../pruned/run.json", "run.json", "../../run.json", "x/" * 4000):  # fmt: skip
        yield Case(f"the twin is {path[:20]!r}", _edited(_set(("twin", "path"), path)), (0, 2))

    def linked(name: str, target: str) -> Edit:
        def edit(run: Path) -> None:
            (run / name).unlink()
            (run / name).symlink_to(target)

        return edit

    for target in (
        "/etc/passwd",
        "/dev/zero",
        "../dense/prefill.trace.json.gz",
        "prefill.trace.json.gz",
    ):
        yield Case(
            f"the trace is a link to {target}",
            _edited(linked("prefill.trace.json.gz", target)),
            (2,),
        )
    for target in ("/etc/passwd", "/dev/zero", "run.json", "/etc"):
        yield Case(f"run.json is a link to {target}", _edited(linked("run.json", target)), (2,))

    def pipe(name: str) -> Edit:
        def edit(run: Path) -> None:
            (run / name).unlink()
            os.mkfifo(run / name)

        return edit

    yield Case("the trace is a pipe", _edited(pipe("prefill.trace.json.gz")), (2,))
    yield Case("run.json is a pipe", _edited(pipe("run.json")), (2,))
    yield Case("the dense run.json is a pipe", _edited(pipe("run.json"), "dense"), (2,))
    yield Case(
        "the dense run is a link to the pruned one", _edited(_dense_is_pruned, "dense"), (0, 2)
    )


def _dense_is_pruned(run: Path) -> None:
    for file in run.iterdir():
        file.unlink()
    run.rmdir()
    run.symlink_to("pruned")
