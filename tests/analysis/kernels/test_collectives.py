"""What collectives send, by hand: bytes over time, and what of that a link carries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.trace.load import load
from tests.chrome import chrome, k, op, save, step

REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
SAID = {"Collective name": "allreduce", "In msg nelems": 4_000_000, "Out msg nelems": 4_000_000,
        "Group size": 4, "dtype": "BFloat16"}  # fmt: skip


def trace(said: dict[str, Any]) -> dict[str, Any]:
    found = chrome(step(0, op("nccl:all_reduce", [64], kernels=[k(us=100, name=REDUCE)])))
    for event in found["traceEvents"]:
        if event["cat"] == "kernel":
            event["args"] |= said
    return found


def note(path: Path) -> str:
    notes = analyze(path).report.phases["trace"].notes
    return next((text for text in notes if text.startswith("collectives")), "")


def test_a_reduction_of_four_ranks(tmp_path: Path) -> None:
    """8 MB in 100 us are 80 GB/s; a ring carries each byte 2·3/4 times: 120 GB/s."""
    assert note(save(trace(SAID), tmp_path / "t.json")) == (
        "collectives, a step: 1 allreduce of 4,000,000 bf16 over 4 ranks, 100.0 µs each, at least "
        "120 GB/s on the bus"
    )


@pytest.mark.parametrize(
    "said",
    [{"Group size": 1}, {"dtype": 3}, {"In msg nelems": -4, "Out msg nelems": "many"},
     {"Collective name": "wait"}, {"Group size": [1]}],
)  # fmt: skip
def test_what_is_not_known_gives_no_bandwidth(said: dict[str, Any], tmp_path: Path) -> None:
    text = note(save(trace({**SAID, **said}), tmp_path / "t.json"))
    assert text.startswith("collectives, a step: 1 ") and "GB/s" not in text


def test_a_real_gather_says_its_size(real_trace: Callable[[str], Path]) -> None:
    found = load(real_trace("b200_eager.json.gz")).collectives
    assert found == [("_allgather_base", 25_136, 201_088, 8, "BFloat16")]
