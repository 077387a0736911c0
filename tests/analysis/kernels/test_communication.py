"""Communication as exposed and overlapped, by hand and on a real trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report import phase_tables
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.summary.headline import headline
from tests.chrome import chrome, gap, k, op, save, step

REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def phase_of(path: Path) -> Phase:
    (phase,) = analyze(path).report.phases.values()
    return phase


def beside(folder: Path, *, comm: float = 10) -> Phase:
    """A reduction of 10 us, a GEMM of 8 us that begins 4 us after it, 2 us of nothing, an addition
    of 2 us; two steps."""
    items = [
        op("nccl:all_reduce", [64], kernels=[k(us=comm, name=REDUCE, stream=20)]),
        op("aten::mm", [64, 64], [64, 64], kernels=[k(us=8, gap_us=4 - comm, name="gemm")]),
        gap(us=2),
        op("aten::add", [64], [64], kernels=[k(us=2, name="vectorized_elementwise_kernel")]),
    ]
    return phase_of(
        save(chrome(step(0, gap(us=1)), step(1, *items), step(2, *items)), folder / "t")
    )


def test_exposed_and_overlapped_by_hand(tmp_path: Path) -> None:
    phase = beside(tmp_path)
    comm = phase.communication
    assert comm is not None
    assert (comm.exposed_ns, comm.overlapped_ns) == (4_000, 6_000)
    assert comm.kinds == {"gemm": 8_000, "elementwise": 2_000}
    assert comm.exposed_ns + sum(comm.kinds.values()) == phase.busy_ns == 14_000
    # The first to begin has the time where kinds are counted: 10 of the reduction, 2 of the GEMM.
    assert phase.kinds == {"comm": 10_000, "gemm": 2_000, "elementwise": 2_000}
    wall = "16.0 µs a step, busy 87.5 % of the wall"
    assert headline(phase) == (
        f"{wall} (62.5 % work, 25.0 % exposed communication; 60.0 % of the communication is "
        "overlapped)"
    )
    table = phase_tables.kinds_table(phase, None)
    assert [(row[0].text, row[1].value) for row in table.rows] == [
        ("gemm", 8_000), ("comm, exposed", 4_000), ("elementwise", 2_000),
    ]  # fmt: skip
    assert table.notes[0].startswith("Another 6.00 µs of communication is overlapped")


def test_little_communication_has_no_part_of_its_own(tmp_path: Path) -> None:
    phase = beside(tmp_path, comm=0.2)
    assert phase.communication is None
    assert phase.busy_by_kind == phase.kinds
    assert "communication" not in headline(phase)


@pytest.mark.parametrize(
    "name", ["hta_a100_resnet_ddp_nccl", "param_v100_dlrm_rank0", "a100_training_graphs_nccl"]
)
def test_the_parts_sum_to_busy(name: str, real_report: Callable[[str], Report]) -> None:
    folder = "../strangers/" * (not name.startswith("a100"))
    (phase,) = real_report(f"{folder}{name}.json.gz").phases.values()
    assert phase.anatomy is not None
    comm = phase.anatomy.communication
    assert comm is not None and comm.overlapped_ns >= 0
    assert comm.exposed_ns + sum(comm.kinds.values()) == pytest.approx(phase.busy_ns, abs=0.5)
    assert comm.exposed_ns <= phase.kinds["comm"] + 0.5
