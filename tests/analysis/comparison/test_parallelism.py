"""A rank of a model that several ranks share out is no pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.analysis.decoder import Layer, decoder
from tests.chrome import k, op, save

WHOLE = Layer()
HALF = {"heads": 2, "kv_heads": 1, "f": 48}  # N of q, k, v, gate and up, and K of o and down


def collective(name: str, kernel: str) -> tuple[Any, ...]:
    return (op(name, [32, 64], kernels=[k(us=3, name=kernel)]),)


REDUCE = collective("nccl:all_reduce", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL")
SEND = collective("nccl:send", "ncclDevKernel_SendRecv")
EXCHANGE = collective("nccl:all_to_all", "ncclDevKernel_AllToAll")


def compared(
    folder: Path, dense: Any, pruned: Any, world: tuple[int | None, int | None] = (None, None)
) -> Phase:
    paths = []
    for name, trace, ranks in zip(("dense", "pruned"), (dense, pruned), world, strict=True):
        if ranks is not None:
            trace["distributedInfo"] = {"backend": "nccl", "rank": 0, "world_size": ranks}
        paths.append(save(trace, folder / f"{name}.json"))
    report = analyze(paths[1], baseline=paths[0], options=Options(sparsity=0.5)).report
    return next(iter(report.phases.values()))


@pytest.mark.parametrize(
    ("ranks", "pruned", "what"),
    [
        (2, [Layer(**HALF, added=REDUCE)] * 4, "2 ranks (4 × all-reduce a step: tensor"),
        (None, [Layer(**HALF, added=REDUCE)] * 4, "several ranks (4 × all-reduce a step: tensor"),
        (2, [Layer(added=SEND), WHOLE], "2 ranks (1 × send and receive a step: pipeline"),
        (8, [Layer(f=48, added=EXCHANGE)] * 4, "8 ranks (4 × all-to-all a step: expert"),
    ],
)
def test_a_rank_of_several_is_not_pruned(
    ranks: int | None, pruned: list[Layer], what: str, tmp_path: Path
) -> None:
    phase = compared(tmp_path, decoder([WHOLE] * 4), decoder(pruned), (None, ranks))
    assert phase.family is not None
    assert phase.family.id == "outside"
    assert what in phase.family.evidence[0]
    assert phase.comparison is not None
    assert not phase.is_speedup
    assert not phase.comparison.shows_pruning
    assert "not-comparable" in {f.id for f in phase.findings}


def test_the_sum_over_ranks_is_offered(tmp_path: Path) -> None:
    pruned = [Layer(**HALF, added=REDUCE)] * 4
    phase = compared(tmp_path, decoder([WHOLE] * 4), decoder(pruned), (None, 2))
    assert phase.family is not None
    # Of 4 layers and a head all but the head is halved: twice the rest, and the head twice.
    assert "summed over the ranks (2 and 1, each as the one traced)" in phase.family.evidence[1]
    assert "sums over the traces of all ranks" in phase.family.evidence[1]


@pytest.mark.parametrize("world", [(2, 2), (None, None), (2, None)])
def test_equal_ranks_compare(world: tuple[int | None, int | None], tmp_path: Path) -> None:
    dense, pruned = ([Layer(f=f, added=REDUCE)] * 4 for f in (96, 48))
    phase = compared(tmp_path, decoder(dense), decoder(pruned), world)
    assert phase.family is not None
    assert phase.family.id == "static-nk-mlp"


@pytest.mark.parametrize(
    ("added", "world"),
    [
        (REDUCE, 1),  # a world of one
        (collective("c10d::broadcast_", "ncclDevKernel_Broadcast_RING_LL"), 2),  # of the inputs
    ],
)
def test_what_shares_nothing_out_is_no_parallelism(
    added: tuple[Any, ...], world: int, tmp_path: Path
) -> None:
    pruned = [Layer(f=48, added=added)] * 4
    phase = compared(tmp_path, decoder([WHOLE] * 4), decoder(pruned), (None, world))
    assert phase.family is not None
    assert phase.family.id == "static-nk-mlp"


def test_a_world_that_does_not_communicate_shares_nothing(tmp_path: Path) -> None:
    phase = compared(tmp_path, decoder([WHOLE] * 4), decoder([Layer(f=48)] * 4), (None, 8))
    assert phase.family is not None
    assert phase.family.id == "static-nk-mlp"
