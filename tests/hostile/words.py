"""Hostile texts wherever a text can stand: what steers a terminal, a browser, LaTeX or a sheet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import ATTACK, Case, trace_file
from tests.hostile.material import decoder, places, write_pair

TEXTS = {
    "everything": ATTACK,
    "control characters": "".join(map(chr, range(32))) + "\x7f\x80\x9b\x85",
    "terminal escapes": "\x1b[2J\x1b]8;;http://evil.example\x07x\x1b]8;;\x07\x9b31m",
    "directions": "\u202eevil\u2066\u200b\ufeff\u2028\u2029",
    "html": "</td></table><img src=x onerror=alert(1)>&lt;&#60;\"'><svg/onload=alert(1)>",
    "html comment": "--><script>alert(1)</script><!--",
    "a template": "{{ 7*7 }}{% for x in () %}{{ x.__class__ }}${7*7}",
    "latex": "\\input{/etc/passwd}\\write18{id}%$#_{}~^&\\end{document}",
    "a formula": "=HYPERLINK(\"http://evil.example\",\"x\")",
    "another formula": "@SUM(1+1)*cmd|' /C calc'!A0\t\r\n",
    "markdown": "[x](javascript:alert(1)) `|` ![y](http://evil.example/p.png) # |---|",
    "rich markup": "[bold red]x[/] [link=file:///etc/passwd]y[/link] [/nothing]",
    "a path": "../../../../etc/passwd\0.png",
    "a percent": "%s%n%x {0} {name} %(x)s",
    "combining": "a" + "\u0301" * 500,
    "emoji and planes": "\U0001f600\U0010ffff\ue000",
    "spaces": "   \u00a0\u3000  ",
    "empty": "",
    "long": "x" * 20_000,
    "long and wide": "漢" * 4_000,
    "long without a break": "a::b<" * 4_000,
}  # fmt: skip


def _everywhere(text: str) -> Any:
    """A trace in which every name, type and id is the text."""
    trace = decoder(layers=1)
    for event in trace["traceEvents"]:
        if event["cat"] in ("kernel", "cuda_runtime") or event["name"].startswith("aten::silu"):
            event["name"] = text
        if event["cat"] == "cpu_op":
            event["args"]["Input type"] = [text] * 3
            event["args"]["Concrete Inputs"] = [text] * 3
    trace["deviceProperties"][0]["name"] = text
    return trace


def in_traces() -> Iterator[Case]:
    """The text as kernel, launch and op name, as a type, as the name of the device."""
    for name, text in TEXTS.items():
        yield Case(
            f"names of a trace: {name}",
            trace_file(lambda t=text: _everywhere(t)),
            (0,),
            text=True,
        )
    scopes = json.dumps(decoder(layers=1)).replace("self_attn", json.dumps(ATTACK)[1:-1]).encode()
    yield Case("names of modules", trace_file(scopes), (0,), text=True)
    halves = json.dumps(decoder(layers=1)).replace("silu", "\\ud800silu\\udfff").encode()
    yield Case("half surrogates in names", trace_file(halves))
    raw = json.dumps(decoder(layers=1)).replace("silu", "\xff\xfe").encode("latin-1")
    yield Case("bytes that are no UTF-8", trace_file(raw), (0,))
    yield Case("a kernel name of 10 MB", trace_file(_one_long_name), (0,), text=True)
    huge = f'{{"{"x" * (10 << 20)}": 1, '.encode() + json.dumps(decoder(layers=1)).encode()[1:]
    yield Case("a key of 10 MB", trace_file(huge), (0, 2))


def _one_long_name() -> Any:
    trace = decoder(layers=1)
    kernel = next(e for e in trace["traceEvents"] if e["cat"] == "kernel")
    kernel["name"] = "k" * (10 << 20)
    return trace


def in_manifests() -> Iterator[Case]:
    """The text in every text of both manifests, and as the name of a phase: in one run, but where
    it is longer than a text of run.json may be."""
    for name, text in TEXTS.items():

        def told(run: dict[str, Any], text: str = text) -> dict[str, Any]:
            return _told(run, text)

        def named(run: dict[str, Any], text: str = text) -> dict[str, Any]:
            return _phase(run, text)

        if len(text) > _LONGEST:
            yield Case(f"texts of run.json: {name}", _manifest(told), (2,))
            yield Case(f"name of a phase: {name}", _manifest(named), text=True)
        else:
            both = _manifest(lambda run, told=told, named=named: named(told(run)))
            yield Case(f"texts of run.json, name of a phase: {name}", both, (0,), text=True)
    yield Case("half surrogates in run.json", _manifest(lambda m: _told(m, "\ud800")), (2,))


def _manifest(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
    """A case's `write`: a pair of runs with both manifests edited."""

    def write(folder: Path) -> Path:
        made = write_pair(folder / "run")
        for variant in ("dense", "pruned"):
            path = made / variant / "run.json"
            path.write_text(json.dumps(edit(json.loads(path.read_text()))))
        return made

    return write


_LONGEST = 256  # characters of a text of run.json
# Files and choices: another text there is another case.
_FIXED = {"trace", "sha256", "path", "variant", "unit", "role"}


def _told(manifest: dict[str, Any], text: str) -> dict[str, Any]:
    for path in list(places(manifest)):
        value: Any = manifest
        for key in path[:-1]:
            value = value[key]
        if isinstance(value[path[-1]], str) and path[-1] not in _FIXED:
            value[path[-1]] = text
    return manifest


def _phase(manifest: dict[str, Any], text: str) -> dict[str, Any]:
    manifest["phases"] = {text: next(iter(manifest["phases"].values()))}
    return manifest
