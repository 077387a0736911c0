"""Write shapes.md: public decoder traces without their shapes, and what a config gives back.

In: ../shared/data, damage and wrong configs of the tests. Out: benchmarks/shapes.md. Run from the
project's root, with it on PYTHONPATH: `python benchmarks/shapes.py [--no-times]`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.analysis.shapes import stripped, test_damaged_traces, test_wrong_configs
from tests.analysis.shapes.stripped import CASES, known, report, strip, table, truth

HERE = Path(__file__).parent
RUNS = 5
DAMAGES = (test_damaged_traces.drop, test_damaged_traces.merge, test_damaged_traces.reorder)
COUNTS = (1, 2, 4, 10, 40)


def recovered(folder: Path) -> Iterator[str]:
    """A row a trace and stripping."""
    for case, (modules, ops) in product(CASES, ((1, 1), (0, 1), (1, 0), (0, 0))):
        true, total = truth(case), sum(truth(case).values())
        path = strip(case, folder, modules=bool(modules), ops=bool(ops), annotations=False)
        gone = ["shapes", *(["modules"] if not modules else []), *(["ops"] if not ops else [])]
        cells = []
        for workload in (case.workload, {}):
            got = known(table(report(path, case, model=case.model, **workload), case))
            whole = sum(ns for row, ns in true.items() if row in got)
            widths = {(role, n, k) for role, m, n, k in got if m is None}
            partly = sum(ns for (role, _, n, k), ns in true.items() if (role, n, k) in widths)
            every = {(role, n, k) for role, _, n, k in true}
            wrong = [r for r in got if r not in true and (r[1] or (r[0], *r[2:]) not in every)]
            cells += [f"{whole / total:.1%}", f"{partly / total:.1%}", str(len(wrong))]
        yield f"| {case.name.split('/')[1]} | {', '.join(gone)} | {' | '.join(cells)} |"


def refused(folder: Path) -> Iterator[str]:
    """A row a wrong config."""
    for case, changes, _ in test_wrong_configs.WRONG:
        path = strip(case, folder, modules=False)
        true = {(role, n, k) for role, _, n, k in truth(case)}
        model = test_wrong_configs.changed(case, folder, changes)
        told = report(path, case, model=model, **case.workload)
        wrong = {(role, n, k) for role, _, n, k in known(table(told, case))} - true
        why = next((w.split(": ", 1)[1] for w in told.warnings if w.startswith("no shapes")), "-")
        said = json.dumps(changes).strip("{}").replace('"', "")
        yield f"| {case.name.split('/')[1]} | {said} | {len(wrong)} | {why.replace('|', '/')} |"


def damaged(folder: Path, seeds: int = 2) -> Iterator[str]:
    """A row a trace and damage: kernels right, null and wrong over all counts and seeds."""
    for case, damage in product(CASES, DAMAGES):
        seen: Counter[str] = Counter()
        for count, seed in product(COUNTS, range(seeds)):
            rng = random.Random(f"{case.name} {damage.__name__} {count} {seed}")
            trace = json.loads(stripped.events(case.name))
            left = damage(test_damaged_traces.numbered(trace), rng, count)
            gone = ("kernel", "python_function", "cpu_op")
            kept = [e for e in trace["traceEvents"] if e.get("cat") not in gone]
            path = stripped.save(trace | {"traceEvents": kept + left}, folder / "damaged.json.gz")
            options = {"model": case.model, **case.workload}
            got = test_damaged_traces.placed(
                test_damaged_traces.kernels_of(path, case, **options), case
            )
            true = test_damaged_traces.truths(case)
            right = sum(test_damaged_traces.same(one, true.get(n)) for n, one in got.items())
            seen["right"] += right
            seen["wrong"] += len(got) - right
            seen["null"] += len(true) - right
        yield (
            f"| {case.name.split('/')[1]} | {damage.__name__} | {seeds * len(COUNTS)} | "
            f"{seen['right']:,} | {seen['null']:,} | {seen['wrong']} |"
        )


def times(folder: Path) -> Iterator[str]:
    """A row a trace: median time of `analyze` with and without a config, in turns."""
    for case in CASES:
        path = strip(case, folder, modules=False)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for with_model in [True, False] * RUNS:
            options = {"model": case.model, **case.workload} if with_model else {}
            begin = time.perf_counter()
            report(path, case, **options)
            seconds[with_model].append(time.perf_counter() - begin)
        a, b = median(seconds[True]), median(seconds[False])
        yield f"| {case.name.split('/')[1]} | {b * 1e3:.0f} | {a * 1e3:.0f} | {a / b:.2f} |"


def page(folder: Path) -> str:
    """The whole page."""
    wrong = list(refused(folder))
    lines = [
        "# Shapes from a model's config",
        "",
        "Public decoder traces that recorded their shapes, stripped of them, and the config of "
        "their model. Made by `python benchmarks/shapes.py`; the traces are in no repository of "
        "ours. "
        "Shares are of the time of linear GEMMs; annotations of engines are stripped too. A row is "
        "wrong where its M, N or K is another than the recorded one.",
        "",
        "| trace | without | M, N, K with B and S | N, K alone | wrong | M, N, K without B and S | "
        "N, K alone | wrong |",
        "|---|---|---|---|---|---|---|---|",
        *recovered(folder),
        "",
        "The graph replay has no grids: M comes from `--batch` or from the engine's annotation.",
        "",
        f"## {len(wrong)} wrong configs",
        "",
        "| trace | config | wrong rows | why not |",
        "|---|---|---|---|",
        *wrong,
        "",
        "## Kernels dropped, merged, reordered",
        "",
        f"{', '.join(map(str, COUNTS))} at a time, without modules and ops.",
        "",
        "| trace | damage | runs | right | null | wrong |",
        "|---|---|---|---|---|---|",
        *damaged(folder),
        "",
        "## Time",
        "",
        f"`analyze` in one process, in turns, median of {RUNS}, ms.",
        "",
        "| trace | without --model | with | times |",
        "|---|---|---|---|",
        *(times(folder) if "--no-times" not in sys.argv else []),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        (HERE / "shapes.md").write_text(page(Path(scratch)), encoding="utf-8")
