"""Write shapes.md: public decoder traces without their shapes, and what a config gives back.

In: ../shared/data, damage and wrong configs of the tests. Out: benchmarks/shapes.md. Run from the
project's root, with it on PYTHONPATH: `python benchmarks/shapes.py`; `--times` takes the times
alone again, on a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.analysis.shapes import stripped, test_damaged_traces, test_wrong_configs
from tests.analysis.shapes.stripped import CASES, Case, known, report, strip, table, truth

HERE = Path(__file__).parent
RUNS = 9
TIME = "## Time"
DAMAGES = (
    test_damaged_traces.drop,
    test_damaged_traces.merge,
    test_damaged_traces.reorder,
    test_damaged_traces.exchange,
)
COUNTS = (1, 2, 4, 10, 40)
SEEDS = 5
COMMAND = [sys.executable, "-m", "prunescope", "analyze"]


def recovered(folder: Path) -> Iterator[str]:
    """A row a trace and stripping."""
    for case, (modules, ops) in product(CASES, ((1, 1), (0, 1), (1, 0), (0, 0))):
        true, total = truth(case), sum(truth(case).values())
        path = strip(case, folder, modules=bool(modules), ops=bool(ops), annotations=False)
        removed = ["shapes", *(["modules"] if not modules else []), *(["ops"] if not ops else [])]
        cells = []
        for workload in (case.workload, {}):
            got = known(table(report(path, case, model=case.model, **workload), case))
            whole = sum(ns for row, ns in true.items() if row in got)
            widths = {(role, n, k) for role, m, n, k in got if m is None}
            partly = sum(ns for (role, _, n, k), ns in true.items() if (role, n, k) in widths)
            every = {(role, n, k) for role, _, n, k in true}
            wrong = [r for r in got if r not in true and (r[1] or (r[0], *r[2:]) not in every)]
            cells += [f"{whole / total:.1%}", f"{partly / total:.1%}", str(len(wrong))]
        yield f"| {case.name.split('/')[1]} | {', '.join(removed)} | {' | '.join(cells)} |"


def refused(folder: Path) -> Iterator[str]:
    """A row a wrong config."""
    for case, changes, _ in test_wrong_configs.WRONG:
        path = strip(case, folder, modules=False)
        true = {(role, n, k) for role, _, n, k in truth(case)}
        model = test_wrong_configs.changed(case, folder, changes)
        shown = report(path, case, model=model, **case.workload)
        wrong = {(role, n, k) for role, _, n, k in known(table(shown, case))} - true
        why = next((w.split(": ", 1)[1] for w in shown.warnings if w.startswith("no shapes")), "-")
        changed = json.dumps(changes).strip("{}").replace('"', "")
        yield f"| {case.name.split('/')[1]} | {changed} | {len(wrong)} | {why.replace('|', '/')} |"


def damaged(folder: Path, seeds: int = SEEDS) -> Iterator[str]:
    """A row a trace and damage: kernels right, null and wrong over all counts and seeds."""
    for case, damage in product(CASES, DAMAGES):
        seen: Counter[str] = Counter()
        for count, seed in product(COUNTS, range(seeds)):
            rng = random.Random(f"{case.name} {damage.__name__} {count} {seed}")
            trace = json.loads(stripped.events(case.name))
            left = damage(test_damaged_traces.numbered(trace), rng, count)
            dropped = ("kernel", "python_function", "cpu_op")
            kept = [e for e in trace["traceEvents"] if e.get("cat") not in dropped]
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
            f"{seen['right']:,} | {seen['null']:,} | "
            f"{seen['null'] / (seen['right'] + seen['null']):.1%} | {seen['wrong']} |"
        )


def near(folder: Path) -> Iterator[str]:
    """A row a config that the trace cannot contradict: what the report says of it."""
    for case, width, role, true in test_wrong_configs.CANNOT_TELL:
        path = strip(case, folder, modules=False)
        model = test_wrong_configs.changed(case, folder, {"intermediate_size": width})
        shown = report(path, case, model=model, **case.workload)
        notes = " ".join(note for phase in shown.phases.values() for note in phase.notes)
        found = re.search(rf"[ ,]{role} ([\d,]+–[\d,]+) by its ([a-z ]+?)[,:]", notes)
        fits = f"{found[1]}, by its {found[2]}" if found else "-"
        yield (
            f"| {case.name.split('/')[1]} | intermediate_size: {width} | {role} | {true:,} | "
            f"{fits} |"
        )


def timed(case: Case, path: Path, *, with_model: bool, command: bool) -> float:
    """Seconds of one analysis: of the command, or of the call in this process."""
    given = {"model": case.model, **case.workload} if with_model else {}
    words = [w for key, v in given.items() for w in (f"--{key.replace('_', '-')}", str(v))]
    begin = time.perf_counter()
    if command:
        line = [*COMMAND, str(path), "--device", case.device, "--json", os.devnull, *words]
        subprocess.run(line, check=True, capture_output=True)
    else:
        report(path, case, **given)
    return time.perf_counter() - begin


def times(folder: Path) -> Iterator[str]:
    """A row a trace: median time of `analyze` with and without a config, in turns."""
    for case in CASES:
        path = strip(case, folder, modules=False)
        cells = []
        for command in (True, False):
            timed(case, path, with_model=True, command=command)
            seconds: dict[bool, list[float]] = {True: [], False: []}
            for with_model in [True, False] * RUNS:
                one = timed(case, path, with_model=with_model, command=command)
                seconds[with_model].append(one)
            a, b = median(seconds[True]), median(seconds[False])
            cells += [f"{b * 1e3:.0f}", f"{a * 1e3:.0f}", f"{a / b:.2f}"]
        yield f"| {case.name.split('/')[1]} | {' | '.join(cells)} |"


def time_section(folder: Path) -> str:
    """The last section of the page."""
    lines = [
        TIME,
        "",
        "`prunescope analyze` of traces without shapes and modules, with and without `--model`, "
        f"in turns, median of {RUNS}, ms; the same call in one process that ran it before, where "
        "nothing hides what alignment and bounds of known shapes cost.",
        "",
        "| trace | command without | with | times | call without | with | times |",
        "|---|---|---|---|---|---|---|",
        *times(folder),
        "",
    ]
    return "\n".join(lines)


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
        "wrong where its M, N or K differs from the recorded one.",
        "",
        "| trace | without | M, N, K with B and S | N, K alone | wrong | M, N, K without B and S | "
        "N, K alone | wrong |",
        "|---|---|---|---|---|---|---|---|",
        *recovered(folder),
        "",
        "The graph replay has no grids: M comes from `--batch` or from the engine's annotation.",
        "",
        f"## {len(wrong)} wrong configs on {len(CASES)} traces",
        "",
        "| trace | config | wrong rows | why not |",
        "|---|---|---|---|",
        *wrong,
        "",
        "## Configs that a trace cannot tell from the right one",
        "",
        "They are taken, and a note gives the interval of N that the trace fits.",
        "",
        "| trace | config | role | right N | N that fits |",
        "|---|---|---|---|---|",
        *near(folder),
        "",
        "## Kernels dropped, merged, reordered, swapped",
        "",
        f"{', '.join(map(str, COUNTS))} at a time, {SEEDS} seeds each, without modules and ops. "
        "Kernels of linears: of the truth's, those that get their role, layer, N and K; null; and "
        "those that get others.",
        "",
        "| trace | damage | runs | right | null | share null | wrong |",
        "|---|---|---|---|---|---|---|",
        *damaged(folder),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    out = HERE / "shapes.md"
    with TemporaryDirectory() as scratch:
        if "--times" in sys.argv:
            text = out.read_text(encoding="utf-8").split(TIME)[0]
        else:
            text = page(Path(scratch))
        out.write_text(text.rstrip() + "\n\n" + time_section(Path(scratch)), encoding="utf-8")
