"""The page of same.py: how many intervals hold the truth, and which scaling tells it.

In: a folder of lines, one a capture. Out: the text of same.md.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import same_plain
from same_cases import CASES, PHASES, ROWS, SCALINGS, SETTINGS, WORDS, key_of, lines_of
from same_costs import cost_lines
from same_places import spread

if TYPE_CHECKING:
    from collections.abc import Iterable


def page_of(folder: Path) -> str:
    """Return the text of same.md from the measurements in a folder."""
    lines = lines_of(folder)
    models = list(dict.fromkeys(line["model"] for line in lines))
    torch_version, machine = lines[0]["torch"], lines[0]["machine"]
    settings = ", ".join(f"{name.replace('_', '-')} {n}" for name, n in SETTINGS.items())
    parts = [
        "# A model against itself, and with losses that are known",
        "",
        f"`python benchmarks/same.py capture --model MODEL --case CASE --out FOLDER`, then "
        f"`python benchmarks/same.py report FOLDER`: {settings} (prompt-len "
        f"{CASES['waiting'][1]['prompt_len']} where a layer waits); torch {torch_version}, "
        f"{machine}. What was kept of each capture is in [same/](same/), a line each. The runs of "
        "one more, on one core (`taskset -c 0`), are runs/same.tar.xz; `make pages` packs them as "
        "benchmarks/bundles/same.zip.",
        "",
        *_same(lines, models),
        *_known(lines, models),
        *cost_lines(folder),
        *same_plain.lines(folder),
        *spread(folder),
        *_busy_loops(lines, models),
    ]
    return "\n".join(parts)


def _of(
    lines: Iterable[dict[str, Any]], model: str, case: str, busy: str = ""
) -> list[dict[str, Any]]:
    return [line for line in lines if key_of(line) == (model, case, busy)]


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
        "Every capture samples its placements again. Mean: of the log ratios, ± its standard "
        "error. Rows: kernel efficiency, and launch and idle.",
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


def _busy_loops(lines: list[dict[str, Any]], models: list[str]) -> list[str]:
    """A table of the differences claimed between equal models while busy loops run."""
    rows = []
    for model in models:
        quiet = [x for x in lines if x["model"] == model and not x["beside"] and x["peaks"]]
        for busy in dict.fromkeys(x["beside"] for x in lines if x["model"] == model):
            found = _of(lines, model, "same", busy) if busy else []
            phases = [line[phase] for line in found for phase in PHASES]
            if not phases:
                continue
            claims = sum(one["valid"] and not _holds(one["realised_ci95"], 1.0) for one in phases)
            critical = sum(
                not one["valid"] and bool(set(one["critical"]) - _TRUST) for one in phases
            )
            rows.append(
                f"| {model} | {busy} | {len(phases)} | {sum(not x['valid'] for x in phases)} | "
                f"{sum(x['valid'] and x['retaken'] > 0 for x in phases)} | "
                f"{sum(x['valid'] and not x['retaken'] for x in phases)} | {claims} | {critical} | "
                f"{_peak_ratio(found, quiet)} | {sum(bool(x['doubts']) for x in found)} |"
            )
    if not rows:
        return []
    return [
        "## Something else runs",
        "",
        "Nothing was done to the model. Quiet again: disturbed samples were taken again until as "
        "many as were asked for were quiet, and the run has those. Peaks: those used in the "
        "reports, over the median of the quiet captures, lowest to highest.",
        "",
        "| model | other load | phases captured | called disturbed | quiet again | nothing seen | "
        "claims of a difference | disturbed and yet a critical finding | peaks | captures with "
        "peaks with caveats |",
        "|---|---|---|---|---|---|---|---|---|---|",
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
