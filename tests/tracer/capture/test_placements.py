"""Weights in fresh memory: what moves, what stays as it was, and what a capture keeps of it."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import sentences
from prunescope.taxonomy.runs.run import PhaseRun, Placement, read_run
from prunescope.tracer.capture import placements, stopping, timing
from prunescope.tracer.capture.placements import (
    further_placement,
    move_weights,
    planned_placements,
    separate_storages,
    split_evenly,
)
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.machine import disturbance
from prunescope.tracer.sweep.plan import SweptRequest
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor for name, tensor in named if tensor.numel()}


def addresses(model: torch.nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors(model).items()}


@pytest.mark.parametrize("room", [1 << 40, 0], ids=["one block", "one by one"])
def test_a_placement_moves_everything_and_changes_nothing(
    tiny: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placements, "free_bytes", lambda _device: room)
    tiny.model.norm.weight.requires_grad_(False)
    before = {n: (t.clone(), t.stride(), t.requires_grad, t) for n, t in tensors(tiny).items()}
    where = addresses(tiny)
    move_weights([tiny], random.Random(0))
    for name, tensor in tensors(tiny).items():
        value, stride, flag, same = before[name]
        assert tensor is same, name
        assert torch.equal(tensor, value), name
        assert (tensor.stride(), tensor.requires_grad) == (stride, flag), name
        assert tensor.data_ptr() % 64 == 0, name
        assert not tensor.is_inference(), name
    moved = addresses(tiny)
    assert all(moved[name] != where[name] for name in where)
    if room:
        assert not set(moved.values()) & set(where.values()), "an old address was given again"


def test_weights_that_move_one_by_one_take_little_more_memory(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a block of its own, longer than the weight by 64 KiB and two alignments at most."""
    monkeypatch.setattr(placements, "free_bytes", lambda _device: 0)
    draw = random.Random(0)
    for _ in range(2):
        move_weights([tiny], draw)
        for name, tensor in tensors(tiny).items():
            held = tensor.untyped_storage().nbytes()
            assert held <= tensor.numel() * tensor.element_size() + (1 << 16) + 2 * 64, name
    where = addresses(tiny)
    assert len({at % (1 << 16) for at in where.values()}) > len(where) / 2


def test_every_placement_draws_other_places() -> None:
    """Places within a large page, and the order of tensors: both differ from placement to
    placement."""
    model = tiny_model("llama")
    draw, seen, orders = random.Random(0), set(), set()
    for _ in range(4):
        move_weights([model], draw)
        found = addresses(model)
        seen.add(found["model.norm.weight"] % (1 << 21))
        orders.add(tuple(sorted(found, key=found.__getitem__)))
    assert len(seen) == len(orders) == 4


def test_tied_weights_and_views_stay_tied() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    whole = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    model.whole, model.turned = whole, torch.nn.Parameter(whole.data[1:].t())
    move_weights([model], random.Random(0))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.turned.untyped_storage().data_ptr() == model.whole.untyped_storage().data_ptr()
    assert model.turned.stride() == (1, 4)
    with torch.no_grad():
        model.whole[2, 1] = 99.0
    assert model.turned[1, 1] == 99.0


@torch.inference_mode()
def test_separate_storages_gives_each_weight_its_own_and_keeps_ties() -> None:
    """What is saved of it is as large as before: 512 bytes of a file a tensor are of torch.save."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64), torch.nn.ReLU())
    model[1].weight = model[0].weight
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    move_weights([model], random.Random(0))
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors(model).values()}
    assert len(storages) == 1
    separate_storages(model, random.Random(0))
    assert model[1].weight is model[0].weight
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors(model).values()}
    assert len(storages) == 3  # a weight of two, two biases
    for name, tensor in tensors(model).items():
        assert torch.equal(tensor, before[name])
        assert tensor.untyped_storage().nbytes() <= tensor.numel() * 4 + 128


def test_a_model_answers_as_before(tiny: Any) -> None:
    ids = torch.arange(8).reshape(1, 8)
    before = tiny(ids).logits
    with torch.inference_mode(mode=False):
        move_weights([tiny], random.Random(0))
    assert torch.equal(tiny(ids).logits, before)


def test_packed_weights_move_with_their_parts() -> None:
    class Packed(torch.nn.Module):
        """As a 2:4 weight is: a tensor that holds plain ones."""

        def __init__(self) -> None:
            super().__init__()
            weight = torch.nn.Parameter(torch.ones(2, 2))
            weight.packed = torch.arange(64.0)  # type: ignore[attr-defined]
            self.weight = weight

    model = Packed()
    where = model.weight.packed.data_ptr()
    move_weights([model], random.Random(0))
    assert model.weight.packed.data_ptr() != where
    assert torch.equal(model.weight.packed, torch.arange(64.0))


def test_samples_and_steps_are_split_evenly() -> None:
    assert split_evenly(20, 8) == [2, 3, 2, 3, 2, 3, 2, 3]
    assert split_evenly(5, 5) == [1] * 5
    plans = planned_placements(
        TraceRequest(model="x", out=Path(), repeats=20, steps=5, placements=8)
    )
    assert sum(plan.repeats for plan in plans) == 20
    assert [plan.steps for plan in plans] == [1] * 8  # one a placement at least
    swept = SweptRequest(model="x", out=Path(), repeats=6, steps=2, placements=6)
    assert [plan.steps for plan in planned_placements(swept)] == [0, 0, 1, 0, 0, 1]
    few = planned_placements(TraceRequest(model="x", out=Path(), repeats=3, steps=5, placements=8))
    assert [(p.repeats, p.steps) for p in few] == [(1, 1), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({"placements": 8, "repeats": 20}, 16),
        ({"placements": 8, "repeats": 6}, 12),
        ({"placements": 5, "repeats": 20}, 5),  # too few to judge a width by
        ({"placements": 8, "repeats": 20, "max_placements": 8}, 8),
        ({"placements": 2, "repeats": 2, "max_placements": 5}, 5),
        ({"placements": 8, "repeats": 20, "max_placements": 5}, 5),
    ],
)
def test_how_many_placements_there_can_be(asked: dict[str, int], most: int) -> None:
    request = TraceRequest(model="x", out=Path(), **asked)  # type: ignore[arg-type]
    assert request.most_placements == most
    assert len(planned_placements(request)) == min(asked["placements"], asked["repeats"], most)


@pytest.mark.parametrize(
    ("wide_until", "count", "phase"), [(0, 3, "decode"), (4, 4, "both"), (99, 5, "prefill")]
)
def test_wide_intervals_ask_for_further_placements(
    quick: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    wide_until: int,
    count: int,
    phase: str,
) -> None:
    def seen(one: list[list[int]], other: list[list[int]], **_of_rule: bool) -> float:
        assert len(one) == len(other) >= 3
        return 0.2 if len(one) < wide_until else 0.01

    monkeypatch.setattr(stopping, "half_width", seen)
    monkeypatch.setattr(timing, "_PLACEMENT_SD", math.inf)
    quiet = SimpleNamespace(elapsed_ns=10**9, reasons=[], switches=0)
    monkeypatch.setattr(disturbance, "between", lambda *_: quiet)
    folder = quick(
        method="static-m",
        sparsity=0.5,
        placements=3,
        repeats=4,
        steps=4,
        max_placements=5,
        phase=phase,
    )
    for name in ("dense", "pruned"):
        for in_phase, run in read_run(folder / name).phases.items():
            assert [len(own) for own in run.samples_by_placement] == [1, 1, 2, 2, 2][:count]
            with gzip.open(folder / name / run.trace) as file:
                events = json.load(file)["traceEvents"]
            steps = {e["name"] for e in events if e["name"].startswith("prunescope.step#")}
            assert len(steps - {"prunescope.step#warmup"}) == run.steps
            assert sum(placement.steps for placement in run.placements) == run.steps
            assert run.placements_requested == (None if count == 3 else 3)
            assert in_phase == "decode" or run.steps == 4 + 2 * (count - 3)


def test_only_phases_with_wide_intervals_get_further_placements(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = SimpleNamespace(elapsed_ns=10**9, reasons=[], switches=0)
    monkeypatch.setattr(disturbance, "between", lambda *_: quiet)
    seen: list[int] = []

    def wide_second(one: list[list[int]], _other: list[list[int]], **_of_rule: bool) -> float:
        seen.append(len(one))
        return 0.2 if len(seen) % 2 == 0 else 0.01

    monkeypatch.setattr(stopping, "half_width", wide_second)
    folder = quick(method="static-m", sparsity=0.5, placements=2, repeats=2, max_placements=3)
    phases = read_run(folder / "pruned").phases
    assert {name: len(run.placements) for name, run in phases.items()} == {
        "prefill": 2,
        "decode": 3,
    }
    assert {name: run.placements_requested for name, run in phases.items()} == {
        "prefill": None,
        "decode": 2,
    }


@pytest.mark.parametrize(
    ("most", "wide", "drawn", "asked"), [(4, 9.0, 4, None), (4, 0.0, 2, 4), (6, 9.0, 6, 4)]
)
def test_a_run_records_the_requested_placements_if_others_were_measured(
    quick: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    wide: float,
    drawn: int,
    asked: int | None,
) -> None:
    """Two samples for four placements: two at first, and as many as are drawn while it is wide."""
    monkeypatch.setattr(stopping, "half_width", lambda *_sides, **_of_rule: wide)
    quiet = SimpleNamespace(elapsed_ns=10**9, reasons=[], switches=0)
    monkeypatch.setattr(disturbance, "between", lambda *_: quiet)
    phase = "prefill" if wide else "decode"
    folder = quick(
        method="static-m", sparsity=0.5, placements=4, repeats=2, max_placements=most, phase=phase
    )
    for name in ("dense", "pruned"):
        measured = read_run(folder / name).phases[phase]
        assert (len(measured.placements), measured.placements_requested) == (drawn, asked)


def test_no_further_placements_beside_other_work(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "half_width", lambda *_sides, **_of_rule: 0.2)
    busy = SimpleNamespace(elapsed_ns=10**9, reasons=["other work"], switches=0)
    monkeypatch.setattr(disturbance, "between", lambda *_: busy)
    folder = quick(
        method="static-m", sparsity=0.5, placements=3, repeats=3, max_placements=5, phase="prefill"
    )
    for phase in read_run(folder / "pruned").phases.values():
        assert phase.has_disturbed_samples
        assert (len(phase.placements), phase.placements_requested) == (3, None)


@pytest.mark.parametrize("method", ["static-m", None])
def test_placements_stop_at_the_interval_that_was_requested(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, method: str | None
) -> None:
    """At the second look, of 6 placements; of a model alone its times are looked at."""
    quiet = SimpleNamespace(elapsed_ns=10**9, reasons=[], switches=0)
    monkeypatch.setattr(disturbance, "between", lambda *_: quiet)
    monkeypatch.setattr(timing, "_PLACEMENT_SD", math.inf)

    def widths(*sides: list[list[int]], sequential: bool) -> float:
        assert sequential and len(sides) == (2 if method else 1)
        looked.append(len(sides[0]))
        return 0.018 if len(sides[0]) == 6 else 0.031

    looked: list[int] = []
    monkeypatch.setattr(stopping, "half_width", widths)
    folder = quick(
        method=method, sparsity=0.5, placements=4, repeats=8, max_placements=8, until=0.02
    )
    names = ("dense", "pruned") if method else ("dense",)
    for name in names:
        run = read_run(folder / name)
        for phase in run.phases.values():
            assert [len(own) for own in phase.samples_by_placement] == [2] * 6
            assert phase.until is not None and phase.is_sequential
            assert phase.placements_requested is None
            assert phase.until.of == ("speedup" if method else "time")
            assert (phase.until.asked, phase.until.reached) == (0.02, 0.018)
            assert (phase.until.looks, phase.until.ended) == (2, "narrow")
    assert set(looked) == {4, 6}


def test_what_was_reached_is_in_the_report_and_a_limit_is_noted(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = SimpleNamespace(elapsed_ns=10**9, reasons=[], switches=0)
    monkeypatch.setattr(disturbance, "between", lambda *_: quiet)
    folder = quick(
        method="static-m", sparsity=0.5, placements=3, repeats=6, until=0.001, phase="prefill"
    )
    run = read_run(folder / "pruned").phases["prefill"]
    assert run.until is not None and run.until.reached is not None
    assert (len(run.placements), run.until.looks) == (3, 1)
    phase = analyze(folder / "pruned", baseline=folder / "dense").report.phases["prefill"]
    assert sentences.statistic(phase).endswith(
        f"; ±0.1 % of the speedup was requested, and ±{100 * run.until.reached:.2g} % reached in "
        "1 look, for which the interval is widened"
    )
    notes = [note for note in phase.notes if note.startswith("--until 0.1%")]
    assert len(notes) == (run.until.ended == "limit")
    assert phase.unprofiled_ns is not None and phase.unprofiled_ns.until == run.until


@pytest.mark.parametrize(
    ("ratios", "adaptive", "count"),
    [
        ([1.0, 1.01], True, 2),  # standard error 0.5 %
        ([1.0, 1.2, 1.0, 1.2, 1.1], True, 8),  # 9 % of two, 5 % of four: to the end
        ([1.0, 1.1, 1.05, 1.05, 1.05], True, 4),  # 5 %, then 2 % of four
        ([1.0, 1.2], False, 2),
        ([2.0, 2.02], True, 2),  # a speedup is no spread
    ],
)
def test_a_placement_is_sampled_until_its_ratio_is_known(
    ratios: list[float], adaptive: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = itertools.chain(ratios, itertools.repeat(ratios[-1]))
    orders: list[bool] = []

    def take(_loops: Any, _device: Any, *, reverse_order: bool) -> dict[str, int]:
        orders.append(reverse_order)
        return {"dense": round(1e6 * next(given)), "pruned": 10**6}

    monkeypatch.setattr(timing, "_take_round", take)
    quiet = SimpleNamespace(elapsed_ns=1e9, reasons=[], switches=0)
    monkeypatch.setattr(disturbance, "between", lambda *_: quiet)
    taken = timing.take_samples(
        {"dense": None, "pruned": None},  # type: ignore[dict-item]
        timing.SamplePlan(warmup=0, repeats=2, is_adaptive=adaptive),
        device=torch.device("cpu"),
    )
    assert [len(own) for own in taken.samples.values()] == [count, count]
    assert (taken.retaken, taken.disturbed) == (0, 0)
    assert orders == [False, True] * (count // 2)  # each way as often


def test_a_further_placement_has_the_samples_and_steps_of_the_largest() -> None:
    request = TraceRequest(model="x", out=Path(), repeats=20, steps=5, placements=8)
    plan = further_placement(request, 9, ("decode",))
    assert (plan.number, plan.repeats, plan.steps) == (9, 3, 1)
    assert plan.phases == ("decode",)


def test_a_capture_keeps_samples_and_steps_by_placement(quick: Callable[..., Path]) -> None:
    out = quick(method="static-m", sparsity=0.5, placements=3, repeats=7, steps=4)
    for variant in ("dense", "pruned"):
        run = read_run(out / variant)
        for name, per_placement in (("prefill", [1, 1, 2]), ("decode", [3, 3, 3])):
            phase = run.phases[name]
            assert [placement.samples for placement in phase.placements] == [2, 2, 3]
            assert list(map(len, phase.samples_by_placement)) == [2, 2, 3]
            assert [placement.steps for placement in phase.placements] == per_placement
            assert phase.steps == sum(per_placement)
            assert all(placement.cost_ns > 0 for placement in phase.placements)
            raw = gzip.decompress((out / variant / f"{name}.trace.json.gz").read_bytes())
            events = [e for e in json.loads(raw)["traceEvents"] if e["ph"] == "X"]
            steps = [e for e in events if e["name"].startswith("prunescope.step#")]
            labels = [e["name"].partition("#")[2] for e in steps]
            assert labels == ["warmup", *map(str, range(phase.steps))]
            ends = [e["ts"] + e["dur"] for e in steps]
            assert all(e["ts"] > end for e, end in zip(steps[1:], ends, strict=False))
            assert [e["name"] for e in events].count("prunescope.phase") == 1


def test_one_placement_leaves_weights_where_they_are(
    quick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("placed")

    monkeypatch.setattr("prunescope.tracer.capture.placements.move_weights", refuse)
    phase = read_run(quick(phase="decode") / "dense").phases["decode"]
    assert [placement.steps for placement in phase.placements] == [3]
    assert phase.samples_by_placement == [phase.samples_ns]


def test_counts_of_dynamic_families_are_those_of_all_profiled_steps(
    quick: Callable[..., Path],
) -> None:
    out = quick(method="dynamic-m", placements=2, repeats=2, phase="decode")
    census = read_run(out / "pruned").census
    assert census is not None
    for counted in census.dynamic["decode"].values():
        assert len(counted.active) == len(counted.total) == 6


def test_weights_that_were_made_in_inference_mode_move_too() -> None:
    with torch.inference_mode():
        model = torch.nn.Linear(8, 8)
        before, wanted = model.weight.data_ptr(), model(torch.ones(8)).clone()
    move_weights([model], random.Random(0))
    with torch.inference_mode():
        assert torch.equal(model(torch.ones(8)), wanted)
    assert model.weight.data_ptr() != before


def test_a_buffer_that_a_forward_wrote_anew_keeps_its_place() -> None:
    model = torch.nn.Linear(8, 8)
    with torch.inference_mode():
        model.register_buffer("angles", torch.ones(4))
    before, kept = model.weight.data_ptr(), model.angles.data_ptr()
    move_weights([model], random.Random(0))
    assert (model.weight.data_ptr() == before, model.angles.data_ptr() == kept) == (False, True)


def test_every_placement_weighs_as_much_in_what_is_disturbed() -> None:
    """One of eight of which all is disturbed is an eighth of the time of a step, however many
    samples were added to the others (2 of 65 samples)."""
    run = PhaseRun(
        batch=1, prompt_len=8, positions=[0, 8], context=4, logits="last", cache="dynamic",
        attention="sdpa", mode="eager", steps=8, tokens_per_step=8, warmup=1,
        samples_ns=[1] * 65,
        placements=[*(Placement(samples=9, steps=1) for _ in range(7)),
                  Placement(samples=2, steps=1, disturbed=2)],
    )  # fmt: skip
    assert run.has_disturbed_samples
    run.placements[-1].disturbed = 1  # a half of an eighth: 6 %
    assert not run.has_disturbed_samples
