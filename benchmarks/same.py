"""Does the tool say what is known? A model against itself, with a wait of 2 ms, without a layer.

    python benchmarks/same.py capture [--model NAME] [--case CASE] [--captures N] [--busy N]
        --out FOLDER
    python benchmarks/same.py costs --out FOLDER
    python benchmarks/same.py places [--model NAME] --out FOLDER
    python benchmarks/same.py report FOLDER [--out FILE]

`capture` appends a line a capture to FOLDER/MODEL.jsonl and may be called again and again; `report`
writes same.md beside this file: how many 95 % intervals hold the truth, and which scaling of a CPU
ledger tells it. `--busy` has so many loops run beside it for a part of the time. `costs` measures
what a record costs, and what the wait does to a plain loop. Give it the machine. `places` compares
seatings with new processes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from same_costs import WAIT_NS, busy_wait, costs, told  # noqa: E402
from same_places import places, spread  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

PHASES = ("prefill", "decode")
ROWS = ("kernel_efficiency", "launch_idle")
VARIANTS = ("dense", "pruned")
# What a profiled step is longer by than a plain one is taken from: each record alike, each ns
# alike, or idle time alone.
SCALINGS = {
    "records": "each record alike (the report)",
    "everything": "everything by W/wall",
    "gaps": "gaps alone",
}
# As a user has them by default, but for a short prompt.
SETTINGS = {"prompt_len": 256, "decode_steps": 8, "seatings": 8, "repeats": 16, "steps": 8}
# Of each case: the method, its options, and ns a step that rows of the ledger are, others 0.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "same": ("same:same", {}, {}),
    "waiting": ("same:waiting", {}, {"launch_idle": WAIT_NS}),
    "gone": ("static-m", {"sparsity": 0.05, "knobs": {"layers": "3"}}, {}),
}
BESIDE = ("", "one busy loop, 8 of 14 s", "two busy loops, 8 of 14 s")
_LOOP = """
import time
while True:
    end = time.monotonic() + 8
    while time.monotonic() < end:
        pass
    time.sleep(6)
"""
WORDS = {
    "same": "nothing was done",
    "waiting": "the first layer waits 2 ms in Python",
    "gone": "the fourth layer is gone",
}


def same(model: torch.nn.Module, sparsity: float) -> torch.nn.Module:  # noqa: ARG001
    """A method that does nothing."""
    return model


def waiting(model: Any, sparsity: float) -> torch.nn.Module:  # noqa: ARG001
    """A method after which the first layer waits, in Python, before its MLP."""

    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: busy_wait())
    return model  # type: ignore[no-any-return]


def main() -> None:
    """Capture, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("capture")
    one.add_argument("--model", default="smollm2-135m-instruct")
    one.add_argument("--case", choices=CASES, default="same")
    one.add_argument("--captures", type=int, default=24, help="of this model and case, in all")
    one.add_argument("--minutes", type=float, default=60.0, help="begin none after so long")
    one.add_argument(
        "--busy", type=int, default=0, choices=range(3), help="busy loops beside it, 8 of 14 s"
    )
    one.add_argument("--out", type=Path, required=True)
    commands.add_parser("costs").add_argument("--out", type=Path, required=True)
    where = commands.add_parser("places")
    where.add_argument("--model", default="smollm2-135m-instruct")
    where.add_argument("--out", type=Path, required=True)
    page = commands.add_parser("report")
    page.add_argument("folder", type=Path)
    page.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    if options.command == "capture":
        capture(options)
        return
    if options.command == "costs":
        costs(options.out)
        return
    if options.command == "places":
        places(options.model, options.out)
        return
    options.out.write_text(_page(_lines(options.folder), options.folder), encoding="utf-8")
    sys.stderr.write(f"wrote {options.out.name}\n")


def capture(options: Any) -> None:
    """Captures until there are as many as asked for, or the time is over; a line of JSON each."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{options.model}.jsonl"
    ours = [x for x in _lines(options.out) if _key(x) == _wanted(options)]
    end = time.monotonic() + 60 * options.minutes
    for number in range(len(ours), options.captures):
        if time.monotonic() > end:
            break
        with tempfile.TemporaryDirectory() as folder, _busy(options.busy):
            found = _captured(options, number, Path(folder) / "run")
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(found) + "\n")
        told = {phase: found[phase]["realised_ci95"] for phase in PHASES}
        sys.stderr.write(f"{options.model} {options.case} {number}: {told}\n")


@contextmanager
def _busy(loops: int) -> Iterator[None]:
    """Processes that compute for 8 s and rest for 6, again and again."""
    running = [subprocess.Popen([sys.executable, "-c", _LOOP]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _wanted(options: Any) -> tuple[str, str, str]:
    return options.model, options.case, BESIDE[options.busy]


def _key(line: dict[str, Any]) -> tuple[str, str, str]:
    return line["model"], line["case"], line["beside"]


def _captured(options: Any, number: int, out: Path) -> dict[str, Any]:
    import torch

    import prunescope

    method, more, _ = CASES[options.case]
    begun = time.perf_counter()
    given = {"sparsity": 0.0, **more, **SETTINGS}
    prunescope.trace(options.model, method=method, warmup=2, seed=number, out=out, **given)
    found: dict[str, Any] = {
        "model": options.model,
        "case": options.case,
        "beside": BESIDE[options.busy],
        "seconds": round(time.perf_counter() - begun, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    return found | _seen(out)


def _seen(run: Path) -> dict[str, Any]:
    """What the report of a capture says."""
    import prunescope

    report = prunescope.analyze(run).to_dict()
    found: dict[str, Any] = {"peaks": report["device"].get("peaks")}
    for name, phase in report["phases"].items():
        ids = [finding["id"] for finding in phase["findings"]]
        rows = {row["row"]: row for row in phase["ledger"] if row["row"] in ROWS}
        found[name] = {
            "realised": phase["ladder"]["realised"],
            "realised_ci95": phase["ladder"]["realised_ci95"],
            "rows": {key: [row["ns"], row["ci95"]] for key, row in rows.items()},
            "scalings": _scalings(run, name),
            "valid": "timing-not-valid" not in ids,
            "critical": [f["id"] for f in phase["findings"] if f["severity"] == "critical"],
        }
    return found


def _scalings(run: Path, phase: str) -> dict[str, dict[str, float]]:
    """{scaling: {row: ns a step}}: the same capture under each."""
    from prunescope.analysis.inputs.open import open_side
    from prunescope.analysis.inputs.subject import Options
    from prunescope.analysis.ledger.books import keep_books
    from prunescope.analysis.ledger.pairing import Cost, UnitSums, pair
    from prunescope.analysis.ledger.samples import samples_of

    dense, pruned = (
        open_side(run / name, Options(), eager=None).read(phase) for name in ("dense", "pruned")
    )
    units = pair(dense.kernels, pruned.kernels, pruned.side.run and pruned.side.run.layer_map)
    walls = samples_of(dense.run), samples_of(pruned.run)

    def by_time(side: UnitSums) -> Cost:
        """As if recording cost each part of a step as much as it is long."""
        return Cost(side.busy.mean(axis=1), side.gap.mean(axis=1), float(side.tail.mean()))

    costs = {"records": lambda side: side.recorded, "everything": by_time, "gaps": lambda _: None}
    out: dict[str, dict[str, float]] = {}
    for scaling, cost in costs.items():
        sides = {n: replace(s, recorded=cost(s)) for n, s in vars(units).items() if n in VARIANTS}
        books = keep_books(
            replace(units, **sides), nominal=None, samples_ns=walls, on_device=scaling == "gaps"
        )
        out[scaling] = {row: float(books.ledger.total(row)[0]) for row in ROWS}
    return out


def _lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def _page(lines: list[dict[str, Any]], folder: Path) -> str:
    models = list(dict.fromkeys(line["model"] for line in lines))
    torch_version, machine = lines[0]["torch"], lines[0]["machine"]
    settings = ", ".join(f"{name.replace('_', '-')} {n}" for name, n in SETTINGS.items())
    parts = [
        "# A model against itself, and with losses that are known",
        "",
        f"`python benchmarks/same.py capture --model MODEL --case CASE --out FOLDER`, then "
        f"`python benchmarks/same.py report FOLDER`: {settings}; torch {torch_version}, {machine}.",
        "",
        *_same(lines, models),
        *_known(lines, models),
        *told(folder),
        *spread(folder),
        *_beside(lines, models),
    ]
    return "\n".join(parts)


def _of(
    lines: Iterable[dict[str, Any]], model: str, case: str, beside: str = ""
) -> list[dict[str, Any]]:
    return [line for line in lines if _key(line) == (model, case, beside)]


def _same(lines: list[dict[str, Any]], models: list[str]) -> list[str]:
    rows = []
    for model in models:
        found = _of(lines, model, "same")
        for phase in PHASES if found else ():
            all_of = [line[phase] for line in found]
            valid = [one for one in all_of if one["valid"]]
            disturbed = len(all_of) - len(valid)
            rows.append(f"| {model} | {phase} | {len(all_of)} | {disturbed} | {_coverage(valid)} |")
    return [
        "## Nothing was done",
        "",
        "Every capture draws its placements anew. Mean: of the log ratios, ± its standard error. "
        "Rows: kernel efficiency, and launch and idle.",
        "",
        "| model | phase | captures | called disturbed | 95 % intervals that hold 1.00 | mean "
        "ratio | median width | row intervals that exclude 0 |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _coverage(valid: list[dict[str, Any]]) -> str:
    """The cells of captures that were not called disturbed."""
    if not valid:
        return "– | – | – | –"
    ratios = [math.log(one["realised"]) for one in valid]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else math.nan
    holds = sum(_holds(one["realised_ci95"], 1.0) for one in valid)
    widths = [one["realised_ci95"][1] - one["realised_ci95"][0] for one in valid]
    outside = sum(not _holds(one["rows"][row][1], 0.0) for one in valid for row in ROWS)
    return (
        f"{holds} of {len(valid)} | {math.exp(statistics.fmean(ratios)):.4f} ± {error:.4f} | "
        f"{statistics.median(widths):.3f} | {outside} of {len(ROWS) * len(valid)}"
    )


def _holds(interval: list[float] | None, value: float) -> bool:
    return interval is not None and interval[0] <= value <= interval[1]


def _known(lines: list[dict[str, Any]], models: list[str]) -> list[str]:
    """The rows whose truth is known, in the report and under both scalings."""
    rows = []
    for model in models:
        for case, (_, _, known) in CASES.items():
            found = _of(lines, model, case)
            for phase in PHASES if found else ():
                valid = [line[phase] for line in found if line[phase]["valid"]]
                for row in ROWS if valid else ():
                    true = known.get(row, 0)
                    # A wait makes the pruned side slower: rows are losses, in ns a step.
                    holds = sum(_holds(one["rows"][row][1], true) for one in valid)
                    cells = [
                        _cell([one["scalings"][s][row] for one in valid], true) for s in SCALINGS
                    ]
                    rows.append(
                        f"| {model} | {WORDS[case]} | {phase} | {row.replace('_', ' ')} | "
                        f"{true / 1e6:.1f} | {holds} of {len(valid)} | " + " | ".join(cells) + " |"
                    )
    return [
        "## Losses that are known",
        "",
        "ms a step. Mean ± standard error over the captures, and in brackets how many standard "
        "errors it is off.",
        "",
        "| model | what was done | phase | row | known | intervals that hold it | "
        + " | ".join(SCALINGS.values())
        + " |",
        "|" + "---|" * (6 + len(SCALINGS)),
        *rows,
        "",
    ]


def _cell(values: list[float], true: float) -> str:
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean / 1e6:+.3f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{mean / 1e6:+.3f} ± {error / 1e6:.3f} ({(mean - true) / error:+.1f})"


def _beside(lines: list[dict[str, Any]], models: list[str]) -> list[str]:
    """What is claimed of nothing while something else runs."""
    rows = []
    for model in models:
        quiet = [x for x in lines if x["model"] == model and not x["beside"] and x["peaks"]]
        for beside in dict.fromkeys(x["beside"] for x in lines if x["model"] == model):
            found = _of(lines, model, "same", beside) if beside else []
            phases = [line[phase] for line in found for phase in PHASES]
            if not phases:
                continue
            claims = sum(one["valid"] and not _holds(one["realised_ci95"], 1.0) for one in phases)
            critical = sum(
                not one["valid"] and bool(set(one["critical"]) - _TRUST) for one in phases
            )
            rows.append(
                f"| {model} | {beside} | {len(phases)} | {sum(not x['valid'] for x in phases)} | "
                f"{claims} | {critical} | {_peak_ratio(found, quiet)} |"
            )
    if not rows:
        return []
    return [
        "## Something else runs",
        "",
        "Nothing was done to the model. Peaks: those used in the reports, over the median of the "
        "quiet captures, lowest to highest.",
        "",
        "| model | beside it | phases captured | called disturbed | claims of a difference | "
        "disturbed and yet a critical finding | peaks |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


_TRUST = {"timing-not-valid"}


def _peak_ratio(found: list[dict[str, Any]], quiet: list[dict[str, Any]]) -> str:
    if not quiet:
        return "no quiet capture"
    usual = statistics.median(_best(line) for line in quiet)
    ratios = sorted(_best(line) / usual for line in found)
    return f"{ratios[0]:.2f}–{ratios[-1]:.2f}"


def _best(line: dict[str, Any]) -> float:
    """FLOP/s of the dtype that is fastest."""
    return float(max(line["peaks"]["dense_flop_per_s"].values()))


if __name__ == "__main__":
    main()
