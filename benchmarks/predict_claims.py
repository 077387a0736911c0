"""What `claim` says of published speedups, and of the same ones inflated; and a set told first.

In: the CSV files of commands beside this file. Out: lines of predict.md. A cell of
published_fourth.csv holds what `predict` said of it (expected, low, high) before the publication
was added to anything: neither constants, nor the error, nor evidence are read from that file.
"""

from __future__ import annotations

import csv
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from predict_cells import HERE, request_of

from prunescope.analysis.predict.claim import VERDICTS, judge_claim, verdict_on
from prunescope.analysis.schema.prediction import Claim

EVIDENCE = ("published_commands.csv", "published_third.csv")  # measurements.json holds them
FOURTH = "published_fourth.csv"
INFLATED = (1.0, 1.3, 2.0, 3.0)
CLAIMS = (
    "What `prunescope claim` says of each published cell that has a command, as measured and "
    "inflated. At most 1% of what was measured may be called impossible. Those of the evidence are "
    "judged by ranges that rest on them; the fourth set is not.\n"
)


def rows_of(name: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a file beside this one."""
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def fourth_section() -> list[str]:
    """Return the lines on the set that was predicted before it was added."""
    lines = [
        "| publication | cell | measured | told | range | holds | told today |",
        "|---|---|---|---|---|---|---|",
    ]
    held: defaultdict[str, list[bool]] = defaultdict(list)
    misses, widths = [], []
    for row in rows_of(FOURTH):
        measured, told = float(row["measured"]), float(row["expected"])
        low, high = float(row["low"]), float(row["high"])
        holds = low <= measured <= high
        held[row["source"]].append(holds)
        misses.append(abs(told / measured - 1))
        widths.append((high - low) / told)
        today = judge_claim(measured, request_of(row["options"])).expected
        lines.append(
            f"| {row['source']} | {row['setting']} ({row['note']}) | {measured:.2f} | {told:.2f} | "
            f"{low:.2f}–{high:.2f} | {'yes' if holds else 'no'} | {today:.2f} |"
        )
    alike = statistics.mean(statistics.mean(cells) for cells in held.values())
    within = [holds for cells in held.values() for holds in cells]
    head = (
        f"{len(within)} cells of {len(held)} publications that nothing was read from, each command "
        f"written down before its prediction was seen: the range held {sum(within)} of them "
        f"({statistics.mean(within):.0%}; publications alike {alike:.0%}), median error "
        f"{statistics.median(misses):.1%}, median width over the expected speedup "
        f"{statistics.median(widths):.2f}. What a publication does not print is assumed beside it."
    )
    return [head, "", *lines]


def claims_section() -> list[str]:
    """Return the lines on how claims are judged, as measured and inflated."""
    lines = ["| cells | claimed | " + " | ".join(VERDICTS) + " |", "|---" * 6 + "|"]
    for name, files in (("of the evidence", EVIDENCE), ("of the fourth set", (FOURTH,))):
        rows = [row for file in files for row in rows_of(file)]
        judged = [
            (measured, judge_claim(measured, request_of(row["options"])))
            for row, measured in ((row, float(row["measured"])) for row in rows)
        ]
        lines += _shares(name, judged)
    return lines


def _shares(name: str, judged: Sequence[tuple[float, Claim]]) -> Iterator[str]:
    """Yield a line for each inflation: the share of each verdict among the cells."""
    for factor in INFLATED:
        verdicts = Counter(
            verdict_on(factor * measured, claim.bound, claim.range, claim.evidence)
            for measured, claim in judged
        )
        shares = " | ".join(f"{verdicts[verdict] / len(judged):.0%}" for verdict in VERDICTS)
        times = "as measured" if factor == 1 else f"{factor:g} × measured"
        yield f"| {len(judged)} {name} | {times} | {shares} |"
