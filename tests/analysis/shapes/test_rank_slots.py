"""Experts that ranks share out: their channels or whole experts, told by grids and collectives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.shapes.items import Item, Placed
from prunescope.analysis.shapes.rank_slots import experts_of
from prunescope.analysis.shapes.slots import GROUPED, expert_slots
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape
from tests.analysis.shapes.stripped import B200, events, report, save, strip

SHAPE = ModelShape.from_config(preset_config("gpt-oss-120b"))
TILED = "bmm_MxE4m3_MxE2m1MxE4m3_Fp32_t128x16x256u2_s3_TN_transOut_schedP2x1x2x3_sm100f"
REDUCE, SEND = {"multimem_all_reduce_kernel": 73.0}, {"deep_ep::intranode::dispatch": 36.0}


def told(
    name: str, tiles: int, ranks: int, collectives: dict[str, float]
) -> list[tuple[int, int] | None]:
    item = Item(row=0, step=0, form=GROUPED, name=name, grid=(tiles, 342, 1), ns=1, role="unknown",
                layer=None, instance=0, kind=GROUPED)  # fmt: skip
    own = expert_slots(SHAPE, ranks)
    experts = experts_of([Placed(item, own[0], 0)], SHAPE, ranks, collectives)
    products = [experts.slots.get(slot) for slot in own]
    return [None if p is None else (p.n, p.k) for p in products]


PART, WHOLE = [(720, 2880), (2880, 360)], [(5760, 2880), (2880, 2880)]


@pytest.mark.parametrize(
    ("name", "tiles", "ranks", "collectives", "products"),
    [
        (TILED, 8, 8, REDUCE, PART),  # 720 channels, padded to 1,024
        (TILED, 45, 8, REDUCE, WHOLE),
        (TILED, 15, 8, REDUCE, [None, None]),  # 1,440 or more: some other mixture
        ("fused_moe_kernel", 8, 8, REDUCE, [None, None]),
        ("fused_moe_kernel", 8, 8, SEND, WHOLE),
        ("fused_moe_kernel", 8, 1, REDUCE, [None, None]),  # attention on each rank by itself
        (TILED, 45, 1, REDUCE, WHOLE),
        ("fused_moe_kernel", 8, 1, {}, WHOLE),
    ],
)
def test_grids_and_collectives_tell_what_a_rank_runs(
    name: str,
    tiles: int,
    ranks: int,
    collectives: dict[str, float],
    products: list[tuple[int, int] | None],
) -> None:
    assert told(name, tiles, ranks, collectives) == products


def test_a_pipeline_that_sends_once_a_step_is_no_all_to_all() -> None:
    assert told("fused_moe_kernel", 8, 8, {"ncclDevKernel_SendRecv": 2.0}) == [None, None]


def rows(path: Path, **options: Any) -> tuple[set[tuple[int | None, ...]], str]:
    analysed = report(path, B200, model=B200.model, **options)
    (phase,) = analysed.phases.values()
    gemms = {(g.m, g.n, g.k) for g in phase.gemms if g.role == "experts"}
    return gemms, " ".join([*phase.notes, *analysed.warnings])


@pytest.mark.parametrize("modules", [True, False])
def test_a_real_rank_has_a_part_of_every_expert(tmp_path: Path, *, modules: bool) -> None:
    gemms, said = rows(strip(B200, tmp_path, modules=modules), **B200.workload)
    assert gemms == {(888 * 4, 720, 2880), (888 * 4, 2880, 360)}
    assert "each of 8 ranks runs its part of the channels of every expert" in said


@pytest.mark.parametrize(
    ("tiles", "gemms", "why"),
    [
        (48, {(None, 5760, 2880), (None, 2880, 2880)}, "a rank runs whole experts"),
        (16, {(None, None, None)}, "M, N and K of the experts are null"),
    ],
)
def test_another_grid_tells_whole_experts_or_nothing(
    tiles: int, gemms: set[tuple[int | None, ...]], why: str, tmp_path: Path
) -> None:
    trace = json.loads(events(B200.name))
    trace["traceEvents"] = [
        e for e in trace["traceEvents"] if e.get("cat") not in ("python_function", "cpu_op")
    ]
    for event in trace["traceEvents"]:
        if event.get("cat") == "kernel" and event["name"].startswith("bmm_MxE4m3"):
            event["args"]["grid"][0] = tiles
    shapes, said = rows(save(trace, tmp_path / "other.json.gz"), **B200.workload)
    assert shapes == gemms and why in said
