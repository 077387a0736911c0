"""Kernels of real traces dropped, merged and reordered: alignment gives the truth or nothing.

Each kernel carries its number through the damage, which knows nothing of the aligner.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from prunescope.analysis.inputs.open import open_side
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ops.kernel_kinds import kernel_kind
from tests.analysis.shapes.stripped import CASES, LINEARS, SHARED, Case, events, save

PRODUCTS = ("gemm", "gemv", "batched_gemm", "grouped_gemm", "attention")
# Two of a layer of one size, on one kernel: nothing tells that they changed places.
TWINS = ({"q", "k", "v", "o"}, {"gate", "up"})
Event = dict[str, Any]
Place = tuple[str, int | None, int, int]  # role, layer, N, K
Damage = Callable[[list[Event], random.Random, int], list[Event]]


def drop(kernels: list[Event], rng: random.Random, count: int) -> list[Event]:
    gone = {id(e) for e in rng.sample(kernels, count)}
    return [e for e in kernels if id(e) not in gone]


def merge(kernels: list[Event], rng: random.Random, count: int) -> list[Event]:
    """Merge kernels with the next one, under the name and grid of the first.

    A GEMM with what follows it (an epilogue) is that GEMM; two GEMMs are neither of them.
    """
    merged = list(kernels)
    for at in sorted(rng.sample(range(len(kernels) - 1), count), reverse=True):
        first, second = merged[at], merged.pop(at + 1)
        first["dur"] = second["ts"] + second["dur"] - first["ts"]
        if kernel_kind(first["name"]) in PRODUCTS and kernel_kind(second["name"]) in PRODUCTS:
            first["args"]["registers per thread"] = 100_000 + at
    return merged


def reorder(kernels: list[Event], rng: random.Random, count: int) -> list[Event]:
    """Two neighbours change places, on the host and on the device."""
    reordered = list(kernels)
    for at in rng.sample(range(len(kernels) - 1), count):
        a, b = reordered[at], reordered[at + 1]
        begin = a["ts"]
        gap = b["ts"] - a["ts"] - a["dur"]
        b["ts"], a["ts"] = begin, begin + b["dur"] + gap
        both = a["args"], b["args"]
        if "correlation" in both[0] and "correlation" in both[1]:
            both[0]["correlation"], both[1]["correlation"] = (
                both[1]["correlation"], both[0]["correlation"],
            )  # fmt: skip
        reordered[at], reordered[at + 1] = b, a
    return reordered


def exchange(kernels: list[Event], rng: random.Random, count: int) -> list[Event]:
    """Two products change places, and what runs between them stays."""
    exchanged = list(kernels)
    at = [i for i, e in enumerate(exchanged) if kernel_kind(e["name"]) in PRODUCTS]
    for n in rng.sample(range(len(at) - 1), count):
        a, b = exchanged[at[n]], exchanged[at[n + 1]]
        for left, right, key in ((a, b, "ts"), (a["args"], b["args"], "correlation")):
            if key in left and key in right:
                left[key], right[key] = right[key], left[key]
        exchanged[at[n]], exchanged[at[n + 1]] = b, a
    return exchanged


def kernels_of(path: Path, case: Case, *, eager: Path | None = None, **options: Any) -> Kernels:
    side = open_side(
        path, Options(device=case.device, **options), eager=eager, model=options.get("model")
    )
    return side.read(side.phases[0]).kernels


def numbered(trace: dict[str, Any]) -> list[Event]:
    """Return the kernels of a trace in time order, each with its number as its registers."""
    kernels = [e for e in trace["traceEvents"] if e.get("cat") == "kernel"]
    kernels.sort(key=lambda e: e["ts"])
    for number, kernel in enumerate(kernels):
        kernel["args"]["registers per thread"] = number
    return kernels


def placed(told: Kernels, case: Case) -> dict[int, Place]:
    """Role, layer, N and K of each linear, by the number of its kernel."""
    shapes = {}
    for row in told.frame.filter("primary").iter_rows(named=True):
        work = None if row["call"] is None else told.shapes.works[row["call"]]
        widths = None if row["call"] is None else told.shapes.widths.get(row["call"])
        if work is not None and len(work.gemms) == 1:
            widths = work.gemms[0].n, work.gemms[0].k
        if row["role"] in (*LINEARS, *case.same) and widths is not None:
            role = case.same.get(row["role"], row["role"])
            shapes[row["registers"]] = (role, row["layer"], *widths)
    return shapes


@cache
def lean(name: str) -> str:
    """Return the text of a trace without ops and frames of Python."""
    trace = json.loads(events(name))
    gone = ("python_function", "cpu_op")
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e.get("cat") not in gone]
    return json.dumps(trace)


@cache
def truths(case: Case) -> dict[int, Place]:
    trace = json.loads(events(case.name))
    numbered(trace)
    eager = None if case.eager is None else SHARED / f"{case.eager}.json.gz"
    with TemporaryDirectory() as folder:
        path = save(trace, Path(folder) / "whole.json.gz")
        return placed(kernels_of(path, case, eager=eager), case)


def same(told: Place, true: Place | None) -> bool:
    """Whether a kernel has the role, layer, N and K of the truth."""
    if true is None:
        return False
    twins = any({told[0], true[0]} <= pair for pair in TWINS)
    return told[1:] == true[1:] and (told[0] == true[0] or twins)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.split("/")[1])
@pytest.mark.parametrize("damage", [drop, merge, reorder, exchange])
@pytest.mark.parametrize("count", [1, 4, 40])
def test_the_truth_or_null(case: Case, damage: Damage, count: int, tmp_path: Path) -> None:
    assert case.path
    rng = random.Random(f"{case.name} {damage.__name__} {count}")
    trace = json.loads(lean(case.name))
    kernels = numbered(trace)
    left = damage(kernels, rng, count)
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e.get("cat") != "kernel"] + left
    path = save(trace, tmp_path / "damaged.json.gz")
    got = placed(kernels_of(path, case, model=case.model, **case.workload), case)
    true = truths(case)
    wrong = {n: (shape, true.get(n)) for n, shape in got.items() if not same(shape, true.get(n))}
    assert not wrong, f"{len(wrong)} of {len(got)}: {list(wrong.items())[:3]}"
    if count == 1 and damage is not exchange:  # an attention in two parts is two
        assert len(got) >= 0.9 * len(true), f"{len(got)} of {len(true)} are told"


def test_products_of_one_kernel_that_changed_places_are_found_by_time(tmp_path: Path) -> None:
    true = truths(CASES[0])
    at = {(place[0], place[1]): number for number, place in true.items()}
    trace = json.loads(events(CASES[0].name))
    kernels = numbered(trace)
    down, q = kernels[at["down", 6]], kernels[at["q", 7]]
    for left, right, key in ((down, q, "ts"), (down["args"], q["args"], "correlation")):
        left[key], right[key] = right[key], left[key]
    gone = ("python_function", "cpu_op")
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e.get("cat") not in gone]
    path = save(trace, tmp_path / "exchanged.json.gz")
    got = placed(kernels_of(path, CASES[0], model=CASES[0].model, **CASES[0].workload), CASES[0])
    missing = set(true) - set(got)
    assert {at["down", 6], at["q", 7]} <= missing and len(missing) <= 4
    assert all(same(left, true[number]) for number, left in got.items())
