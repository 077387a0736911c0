"""Write strangers.md: the report of each public trace next to the checkout, and its null values.

In: ../shared/data (traces, strangers). Out: benchmarks/strangers.md. Run from the project's root.
"""

from __future__ import annotations

from pathlib import Path

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from prunescope.taxonomy.words import percent

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
# What was compared by hand with the raw events, apart from the recomputation by tests.
BY_HAND = {
    "h100_qwen1.5-0.5b_prefill": "GEMM table and times against TraceLens's tables; roles by module",
    "h100_owlv2-large": "490 ms of scipy's zoom_shift before the images are copied",
    "h100_vit": "roles by class; no lm_head",
    "mi300x_sglang_qwen3-8b_prefilldecode": "grids in blocks and work-items; 494 ms held back",
    "mi300x_sglang_qwen3-8b_decode_graph": "463 ms held back; kinds by kernel names",
    "tracelens_mi300x_timesformer": "grid of softmax = 96 × 3,137 rows; qkv, up and down; 38.5 MB "
    "to the device at 35.4 of the link's 63 GB/s",
    "truth_T1_depth_timesformer_mi300": "layers 3 and 8 removed: coverage +520,146 ns",
    "kineto_v100_resnet50_train_workers0": "48 to 62 ms of each long gap in DataLoader.__next__; "
    "relu_, which calls clamp_min, reads its input once",
    "saf_a100_sam_bf16_compile_b": "24.635 ms of GEMM kernels in 7 addmm of 4,194,304 rows, and "
    "7.051 ms in 3 linears of as many rows that ran as aten::bmm (1,024 × 4,096)",
    "nanovllm_rtx4080l_decode_b3": "2 of 19 launches lack their kernel; the table of cosines is "
    "21 MB, of which 3 rows are read",
    "param_v100_dlrm_rank0": "GEMMs of 16 rows wait for memory, not for the rate of CUDA cores",
    "a100_training_graphs_nccl": "63 ms idle before the first recorded kernel of one graph replay "
    "a step, launched 130 ms before",
    "luatil_rtx3060_gpt_train_eager": "wall, busy and gap of the five steps",
    "truth_N4_gpt_forward_only": "against training: not comparable; the head's N is the table "
    "of a Triton kernel",
    "truth_T14_mlp1536_gpt_fwd": "against N4: shape + kernel efficiency +118,123 ns",
    "truth_T9_lowrank_gpt_fwd": "against N4: 16 GEMMs through a rank of 192",
}


def row(name: str, phase: str, p: Phase, device: str) -> str:
    """One line of the table."""
    busy = p.busy_ns or 1.0
    shares = " / ".join(f"{percent(p.coverage[w])}" for w in ("kind", "work", "role"))
    bounds = 1 - p.bound["unknown"] / busy
    idle = p.anatomy.idle[:1] if p.anatomy is not None else []
    first = ", ".join(
        f"{one.ns / 1e6:.2f} ms {one.doing}" + (f" ({one.beside})" if one.beside else "")
        for one in idle
    )
    kind = p.phase_kind["kind"] if p.phase_kind else "-"
    times = " / ".join(f"{ns / 1e6:.3f}" for ns in (p.wall_ns, p.busy_ns, p.gap_ns))
    cells = [name, device, phase if phase != "trace" else kind, times, shares, f"{percent(bounds)}",
             first or "-", "; ".join(null_of(p)) or "-", BY_HAND.get(name, "-")]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def null_of(p: Phase) -> list[str]:
    """The values of a phase that the report leaves null."""
    busy = p.busy_ns or 1.0
    unknown = []
    if p.coverage["work"] < 0.99:
        unknown.append(f"FLOPs and bytes of {percent(1 - p.coverage['work'])}")
    if p.coverage["role"] < 0.99:
        unknown.append(f"roles of {percent(1 - p.coverage['role'])}")
    if p.bound["unknown"] > 0.01 * busy:
        unknown.append(f"bound of {percent(p.bound['unknown'] / busy)}")
    if p.anatomy is not None and p.anatomy.gaps.get("unknown"):
        unknown.append(f"cause of {p.anatomy.gaps['unknown'] / 1e6:.3f} ms idle")
    return unknown


def page() -> str:
    """The whole page."""
    lines = [
        "# Traces of strangers",
        "",
        "Public traces that others captured, as prunescope reads them. Made by "
        "`python benchmarks/strangers.py`; the traces are in no repository of ours. Busy unions, "
        "gaps and their parts, and the GEMM table from Input Dims (calls and ns of each batch, M, "
        "N, K) are computed again from the raw JSON of each trace by "
        "`tests/analysis/test_recomputed.py`, which shares no code with the analysis. Shares are "
        "of busy time; what is null is not known from the trace, and no number stands for it.",
        "",
        "| trace | device | phase | wall / busy / gap, ms a step | kind / work / role | "
        "bound known | most idle time | null | checked by hand |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(p for d in ("traces", "strangers") for p in (DATA / d).glob("*.json.gz")):
        analysis = analyze(path)
        used = analysis.report.device
        device = str((used["name"] if isinstance(used, dict) else used.name) or "-")
        for phase, found in analysis.report.phases.items():
            lines.append(row(path.name.removesuffix(".json.gz"), phase, found, device))
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    (HERE / "strangers.md").write_text(page(), encoding="utf-8")
