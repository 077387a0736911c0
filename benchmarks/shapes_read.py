"""Strip public decoder traces of their shapes, and read what a config gives back.

In: ../shared/data, damage and wrong configs of the tests. Out: dictionaries of numbers, a row of
shapes.md each.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.analysis.shapes import stripped, test_damaged_traces, test_wrong_configs
from tests.analysis.shapes.stripped import CASES, Case, known, report, strip, table, truth

DAMAGES = (
    test_damaged_traces.drop,
    test_damaged_traces.merge,
    test_damaged_traces.reorder,
    test_damaged_traces.exchange,
)
COUNTS = (1, 2, 4, 10, 40)
SEEDS = 5


Found = dict[str, Any]


def read() -> dict[str, list[Found]]:
    """Return the rows of all tables, by the name of the function that reads them."""
    with TemporaryDirectory() as folder:
        tables = (recovered, refused, near, damaged)
        return {table.__name__: list(table(Path(folder))) for table in tables}


def recovered(folder: Path) -> Iterator[Found]:
    """Yield the ns of linear GEMMs that get their shapes, for each trace and stripping."""
    for case, (modules, ops) in product(CASES, ((1, 1), (0, 1), (1, 0), (0, 0))):
        true, total = truth(case), sum(truth(case).values())
        path = strip(case, folder, modules=bool(modules), ops=bool(ops), annotations=False)
        removed = ["shapes", *(["modules"] if not modules else []), *(["ops"] if not ops else [])]
        parts = []
        for workload in (case.workload, {}):
            got = known(table(report(path, case, model=case.model, **workload), case))
            widths = {(role, n, k) for role, m, n, k in got if m is None}
            every = {(role, n, k) for role, _, n, k in true}
            wrong = [r for r in got if r not in true and (r[1] or (r[0], *r[2:]) not in every)]
            parts.append(
                {
                    "whole_ns": sum(ns for row, ns in true.items() if row in got),
                    "widths_ns": sum(
                        ns for (role, _, n, k), ns in true.items() if (role, n, k) in widths
                    ),
                    "wrong": len(wrong),
                }
            )
        yield {"trace": name_of(case), "without": removed, "total_ns": total, "with": parts}


def name_of(case: Case) -> str:
    """Return the name of a trace, without its folder."""
    return case.name.split("/")[1]


def refused(folder: Path) -> Iterator[Found]:
    """Yield the wrong rows and the reason for each wrong config."""
    for case, changes, _ in test_wrong_configs.WRONG:
        path = strip(case, folder, modules=False)
        true = {(role, n, k) for role, _, n, k in truth(case)}
        model = test_wrong_configs.changed(case, folder, changes)
        shown = report(path, case, model=model, **case.workload)
        wrong = {(role, n, k) for role, _, n, k in known(table(shown, case))} - true
        why = next((w.split(": ", 1)[1] for w in shown.warnings if w.startswith("no shapes")), "-")
        yield {"trace": name_of(case), "config": changes, "wrong": len(wrong), "why": why}


def damaged(folder: Path, seeds: int = SEEDS) -> Iterator[Found]:
    """Yield kernels right, null and wrong over all counts and seeds, for each trace and damage."""
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
        runs = {"trace": name_of(case), "damage": damage.__name__, "counts": COUNTS, "seeds": seeds}
        yield {**runs, **seen}


def near(folder: Path) -> Iterator[Found]:
    """Yield what the report says of each config that the trace cannot contradict."""
    for case, width, role, true in test_wrong_configs.CANNOT_TELL:
        path = strip(case, folder, modules=False)
        model = test_wrong_configs.changed(case, folder, {"intermediate_size": width})
        shown = report(path, case, model=model, **case.workload)
        notes = " ".join(note for phase in shown.phases.values() for note in phase.notes)
        found = re.search(rf"[ ,]{role} ([\d,]+–[\d,]+) by its ([a-z ]+?)[,:]", notes)
        yield {
            "trace": name_of(case),
            "intermediate_size": width,
            "role": role,
            "right": true,
            "fits": f"{found[1]}, by its {found[2]}" if found else "-",
        }
