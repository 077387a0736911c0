"""The page of a GPU benchmark: tables from what the slices left in a folder.

In: a folder with SLICE.json and SLICE*.zip. Out: Markdown. Medians are taken here, of raw samples;
bounds and verdicts are what `analyze` says of the archived runs.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunescope.analysis.device.hardware import device_in_trace
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.numbers import UNKNOWN, percent, ratio, share_of
from prunescope.analysis.schema.report import Phase
from prunescope.taxonomy.errors import PrunescopeError

Record = dict[str, Any]
Entry = Mapping[str, Any]
_JUMP = 1.05  # a step of N that costs this much is shown


def page(folder: Path) -> str:
    """Every slice found, in a fixed order. Raises PrunescopeError where there is none."""
    records = {p.stem: json.loads(p.read_bytes()) for p in sorted(folder.glob("*.json"))}
    records = {name: r for name, r in records.items() if name in _SECTIONS}
    if not records:
        raise PrunescopeError(
            f"{folder.name}/ holds no slice", hint="python benchmarks/gpu.py SLICE --out FOLDER"
        )
    lines = ["# Pruned LLMs on a GPU", ""]
    tests = [n for n, r in records.items() if r["tiny"] or r["device"] == "cpu"]
    if tests:
        lines += [f"**No result: {', '.join(tests)} ran with tiny shapes or on a CPU.**", ""]
    lines += [
        "Medians of raw samples. *device*: calls replayed in a CUDA graph, between events; "
        "*Python*: the same calls from Python. Weights are random.",
        "",
        *_sittings(records),
    ]
    for name, section in _SECTIONS.items():
        if name in records:
            lines += [
                "",
                f"## {name}",
                "",
                *section(records[name], folder),
                *_missing(records[name]),
            ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; one line that says so where there are no rows."""
    found = list(rows)
    if not found:
        return ["Nothing was measured."]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads), *(" | ".join(r) for r in found)]
    return [f"| {line} |" for line in lines]


def median(entry: Entry | None, way: str = "graph") -> float | None:
    """ns a call by one way of timing; a CPU has the loop alone. None where nothing was timed."""
    if entry is None:
        return None
    timed = entry.get(way) or (entry.get("loop") if "graph" not in entry else None) or entry
    samples = timed.get("samples_ns") if isinstance(timed, Mapping) else None
    return statistics.median(samples) if samples else None


def number(value: float | None, digits: int = 3) -> str:
    """Some significant digits, or a dash."""
    if value is None:
        return UNKNOWN
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e" in text else text


def _done(record: Record) -> dict[str, Record]:
    return {i: e for i, e in record["cells"].items() if e["state"] == "done"}


def _sittings(records: Mapping[str, Record]) -> list[str]:
    rows = []
    for record in records.values():
        for sitting in record["sittings"]:
            versions, before = sitting["versions"], sitting["before"]
            after = sitting.get("after", {})
            clock = " → ".join(str(x.get("sm_mhz", UNKNOWN)) for x in (before, after))
            libraries = f"torch {versions['torch']}, transformers {versions['transformers']}"
            extra = [f"{k} {versions[k]}" for k in ("toolkit", "cudnn", "cusparselt")
                     if versions.get(k)]  # fmt: skip
            rows.append([
                f"`{' '.join(sitting['command'])}`", sitting["at"][:10], sitting["device"]["name"],
                str(before.get("driver") or UNKNOWN), clock, ", ".join([libraries, *extra]),
                number(sitting["seconds"]),
            ])  # fmt: skip
    heads = ("command", "date", "device", "driver", "SM MHz, before → after", "versions", "s")
    return table(heads, rows)


def _missing(record: Record) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for cell_id, entry in record["cells"].items():
        if entry["state"] != "done":
            reasons.setdefault(f"{entry['state']}: {entry['why']}", []).append(cell_id)
    lines = [f"- {len(ids)} {why} ({', '.join(ids[:3])}{' …' * (len(ids) > 3)})"
             for why, ids in reasons.items()]  # fmt: skip
    if record["open"]:
        lines.append(f"- {len(record['open'])} not begun ({', '.join(record['open'][:3])} …)")
    return ["", *lines] if lines else []


def _calibrate(record: Record, _folder: Path) -> list[str]:
    cells = _done(record)
    sheet = device_in_trace(record["sittings"][-1]["device"]["name"])
    rows = []
    for dtype in dict.fromkeys(e["dtype"] for e in cells.values() if e["of"] == "gemm"):
        rates = {
            i: 2 * e["m"] * e["n"] * e["k"] / ns
            for i, e in cells.items()
            if e.get("dtype") == dtype and (ns := median(e)) is not None
        }
        best = max(rates, key=lambda i: rates[i], default=None)
        if best is None:
            continue
        peak = sheet.dense_flop_per_s.get(dtype) if sheet else None
        share = percent(share_of(rates[best] * 1e9, peak), decimals=0)
        rows.append([f"{dtype} GEMM, {best.split('/')[-1]}", f"{number(rates[best] / 1e3)} TFLOP/s",
                     number(None if peak is None else peak / 1e12), share])  # fmt: skip
    for of in ("read", "write", "copy"):
        if of in cells:
            rate = share_of(cells[of]["bytes"], median(cells[of]))
            peak = sheet.byte_per_s if sheet else None
            share = percent(share_of(rate and rate * 1e9, peak), decimals=0)
            rows.append([of, f"{number(rate)} GB/s", number(peak and peak / 1e9), share])
    rows += [
        [of, f"{number(median(cells[of]))} ns", UNKNOWN, UNKNOWN]
        for of in ("floor", "launch", "round-trip", "graph-launch")
        if of in cells
    ]
    return table(("what", "measured", "data sheet", "share"), rows)


def _sparse24(record: Record, _folder: Path) -> list[str]:
    """Speedup over the dense layer, on the device and from Python."""
    rows = []
    for cell_id, e in sorted(_done(record).items(), key=lambda x: (x[0].split("/m")[0], x[1]["m"])):
        dense = e["dense"]
        row = [cell_id, f"{e['m']}×{e['n']}×{e['k']}", number(_us(median(dense)))]
        for name in ("cusparselt", "cutlass"):
            other = e[name]
            if "why" in other:
                row += [UNKNOWN, UNKNOWN, other["why"]]
                continue
            row += [
                ratio(share_of(median(dense, way), median(other, way))) for way in ("graph", "loop")
            ]
            names = dict.fromkeys(kernel[:40] for kernel in other.get("kernels", []))
            row.append(", ".join(names) or UNKNOWN)
        rows.append([part.replace("|", "\\|") for part in row])
    heads = ("cell", "M×N×K", "dense, µs", "cuSPARSELt, device", "Python", "kernels",
             "CUTLASS, device", "Python", "kernels")  # fmt: skip
    return table(heads, rows)


def _us(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e3


def _graph(record: Record, _folder: Path) -> list[str]:
    rows = []
    for entry in (e for i, e in _done(record).items() if i.startswith("times/")):
        ways = [median(entry.get(way)) for way in ("eager", "eager-static", "graph")]
        rows.append([str(entry["batch"]), *(number(None if w is None else w / 1e6) for w in ways),
                     ratio(share_of(ways[0], ways[2]))])  # fmt: skip
    heads = ("B", "eager, ms a token", "eager, static cache", "CUDA graph", "eager / graph")
    return table(heads, rows)


def _waves(record: Record, _folder: Path) -> list[str]:
    """Where one more step of 64 costs much: the edges of waves and tiles."""
    sweeps: dict[tuple[str, str, int], list[tuple[int, float, str]]] = {}
    for e in _done(record).values():
        size = e["k"] if e["sweep"] == "down-k" else e["n"]
        ns = median(e)
        if ns is not None:
            kernel = (e.get("kernels") or [UNKNOWN])[0]
            sweeps.setdefault((e["model"], e["sweep"], e["m"]), []).append((size, ns, kernel))
    rows = []
    for (model, sweep, m), points in sorted(sweeps.items()):
        points.sort()
        jumps = [
            f"{a[0]} → {b[0]}: {number(_us(a[1]))} → {number(_us(b[1]))} µs"
            for a, b in zip(points, points[1:], strict=False)
            if b[1] > _JUMP * a[1]
        ]
        kernels = len({kernel for *_, kernel in points})
        first, last = points[0], points[-1]
        rows.append([model, sweep, str(m), f"{first[0]} … {last[0]} ({len(points)})",
                     f"{number(_us(first[1]))} … {number(_us(last[1]))}", str(kernels),
                     "; ".join(jumps) or "none"])  # fmt: skip
    heads = ("model", "sweep", "M", "N (K for down-k)", "µs", "kernels", "jumps of 5 % or more")
    return table(heads, rows)


def _observer(record: Record, _folder: Path) -> list[str]:
    rows = []
    for e in _done(record).values():
        plain, watched = median(e["unprofiled"]), median(e["profiled"])
        rows.append([e["phase"], str(e["batch"]), e["observer"],
                     *(number(None if x is None else x / 1e6) for x in (plain, watched)),
                     ratio(share_of(watched, plain))])  # fmt: skip
    return table(("phase", "B", "recorded", "unprofiled, ms", "profiled, ms", "factor"), rows)


def _families(record: Record, folder: Path) -> list[str]:
    rows = []
    for cell_id, e in _done(record).items():
        walls = {
            name: statistics.median(run["phases"][e["phase"]]["samples_ns"])
            for name, run in e["runs"].items()
        }
        dense, pruned = walls.get("dense"), walls.get("pruned")
        rows.append([
            str(e["method"] or "dense"), f"{e['sparsity']:g}", e["phase"], str(e["batch"]),
            str(e["prompt_len"]), e["mode"], *(number(x and x / 1e6) for x in (dense, pruned)),
            ratio(share_of(dense, pruned)) + _doubt(e),
            *_said(folder, record["slice"], cell_id, e["phase"]),
        ])  # fmt: skip
    heads = ("family", "s", "phase", "B", "S", "mode", "dense, ms", "pruned, ms", "realised",
             "FLOPs", "roofline", "kernels", "verdict", "largest loss")  # fmt: skip
    return table(heads, rows)


def _doubt(entry: Entry) -> str:
    """Whether something else ran beside a side of a cell."""
    sides = (run["phases"][entry["phase"]] for run in entry["runs"].values())
    return ", not valid" if any(side.get("disturbed") for side in sides) else ""


def _said(folder: Path, name: str, cell_id: str, phase: str) -> list[str]:
    """What the analysis says of a cell's runs: bounds, family, and the row that lost most."""
    with tempfile.TemporaryDirectory(prefix="prunescope-") as home:
        if not _unpacked(folder, name, cell_id, Path(home)):
            return [UNKNOWN, UNKNOWN, UNKNOWN, "its trace was not kept", UNKNOWN]
        try:
            found = analyze(Path(home) / cell_id).report.phases[phase]
        except PrunescopeError as error:
            why = error.problem[:120].replace("|", "\\|")
            return [UNKNOWN, UNKNOWN, UNKNOWN, f"not analysed: {why}", UNKNOWN]
    return _verdict(found)


def _verdict(phase: Phase) -> list[str]:
    ladder, family = phase.ladder, phase.family
    bounds = (ladder.flop, ladder.roofline, ladder.busy) if ladder else (None, None, None)
    losses = [r for r in phase.ledger or [] if r.row not in ("dense", "promised", "pruned")]
    worst = max(losses, key=lambda r: r.ns, default=None)
    loss = f"{worst.row} +{worst.ns / 1e6:.3g} ms" if worst and worst.ns > 0 else UNKNOWN
    return [*(ratio(b) for b in bounds), family.id if family else UNKNOWN, loss]


def _unpacked(folder: Path, name: str, cell_id: str, home: Path) -> bool:
    """Write the files of one cell below `home`; False where no archive has them."""
    for archive in sorted(folder.glob(f"{name}*.zip")):
        with zipfile.ZipFile(archive) as packed:
            own = [n for n in packed.namelist() if n.startswith(f"{cell_id}/")]
            if own:
                packed.extractall(home, own)
                return True
    return False


def _goldens(record: Record, folder: Path) -> list[str]:
    rows = []
    for cell_id, e in _done(record).items():
        with tempfile.TemporaryDirectory(prefix="prunescope-") as home:
            there = _unpacked(folder, "goldens", cell_id, Path(home))
            files = [p for p in Path(home).rglob("*") if p.is_file()]
            size = sum(p.stat().st_size for p in files)
        kept = f"{size / 1e3:.0f} kB in {len(files)} files" if there else "not kept"
        rows.append([cell_id, f"{e['sparsity']:g}", ", ".join(e["runs"]), kept])
    return table(("golden", "s", "runs", "size"), rows)


_SECTIONS: dict[str, Callable[[Record, Path], list[str]]] = {
    "calibrate": _calibrate,
    "sparse24": _sparse24,
    "graph": _graph,
    "waves": _waves,
    "observer": _observer,
    "families-1b": _families,
    "families-8b": _families,
    "goldens": _goldens,
}
