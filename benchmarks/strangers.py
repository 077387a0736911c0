"""Write strangers.md: the report of each public trace next to the checkout, and its null values.

    python benchmarks/strangers.py           # reads the traces, and writes both files
    python benchmarks/strangers.py --page    # the page alone

In: ../shared/data (traces, strangers). Out: strangers.json, what the report of each phase has, and
strangers.md, which follows from it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunescope.analysis.schema.report import Phase

from prunescope.taxonomy.words import percent

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

KEPT = HERE / "strangers.json"
DATA = HERE.parents[1] / "shared" / "data"
# What was compared by hand with the raw events, apart from the recomputation by tests.
BY_HAND = {
    "h100_qwen1.5-0.5b_prefill": "GEMM table and times against TraceLens's tables; roles by module",
    "h100_owlv2-large": "490 ms of scipy's zoom_shift before the images are copied",
    "h100_vit": "roles by class; no lm_head",
    "mi300x_sglang_qwen3-8b_prefilldecode": "grids in blocks and work-items; 493 ms idle "
    "before the second kernel, which are left out",
    "mi300x_sglang_qwen3-8b_decode_graph": "463 ms idle before the second kernel, which are "
    "left out; kinds by kernel names",
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


def read() -> list[dict[str, Any]]:
    """Return what the reports of all traces have, a dictionary a phase."""
    from prunescope.analysis.pipeline import analyze

    rows = []
    for path in sorted(p for d in ("traces", "strangers") for p in (DATA / d).glob("*.json.gz")):
        report = analyze(path).report
        used = report.device
        device = str((used["name"] if isinstance(used, dict) else used.name) or "-")
        for name, phase in report.phases.items():
            first = {"trace": path.name.removesuffix(".json.gz"), "device": device, "phase": name}
            rows.append(first | numbers(phase))
    return rows


def numbers(phase: Phase) -> dict[str, Any]:
    """Return what the page shows of a phase: ns a step, and shares of its busy time."""
    anatomy = phase.anatomy
    return {
        "kind": phase.phase_kind["kind"] if phase.phase_kind else None,
        "wall_ns": phase.wall_ns,
        "busy_ns": phase.busy_ns,
        "gap_ns": phase.gap_ns,
        "coverage": {name: round(phase.coverage[name], 9) for name in ("kind", "work", "role")},
        "unknown_ns": phase.bound["unknown"],
        "unknown_gap_ns": anatomy.gaps.get("unknown") if anatomy else None,
        "idle": [
            {"ns": part.ns, "doing": part.doing, "beside": part.beside}
            for part in (anatomy.idle[:1] if anatomy else [])
        ],
    }


def row(found: dict[str, Any]) -> str:
    """Return the row of a phase."""
    busy = found["busy_ns"] or 1.0
    shares = " / ".join(percent(share) for share in found["coverage"].values())
    first = ", ".join(
        f"{part['ns'] / 1e6:.2f} ms {part['doing']}"
        + (f" ({part['beside']})" if part["beside"] else "")
        for part in found["idle"]
    )
    times = " / ".join(f"{found[f'{name}_ns'] / 1e6:.3f}" for name in ("wall", "busy", "gap"))
    cells = (
        found["trace"],
        found["device"],
        found["phase"] if found["phase"] != "trace" else found["kind"] or "-",
        times,
        shares,
        percent(1 - found["unknown_ns"] / busy),
        first or "-",
        "; ".join(null_of(found)) or "-",
        BY_HAND.get(found["trace"], "-"),
    )
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def null_of(found: dict[str, Any]) -> list[str]:
    """Return the values of a phase that the report leaves null."""
    busy = found["busy_ns"] or 1.0
    work, role = found["coverage"]["work"], found["coverage"]["role"]
    unknown = []
    if work < 0.99:
        unknown.append(f"FLOPs and bytes of {percent(1 - work)}")
    if role < 0.99:
        unknown.append(f"roles of {percent(1 - role)}")
    if found["unknown_ns"] > 0.01 * busy:
        unknown.append(f"bound of {percent(found['unknown_ns'] / busy)}")
    if found["unknown_gap_ns"]:
        unknown.append(f"cause of {found['unknown_gap_ns'] / 1e6:.3f} ms idle")
    return unknown


def page() -> str:
    """Return the page of what strangers.json holds."""
    lines = [
        "# Traces of strangers",
        "",
        "Public traces that others captured, as prunescope reads them. Made by "
        "`python benchmarks/strangers.py`, which reads the traces into "
        "[strangers.json](strangers.json); they are in no repository of ours. Busy unions, "
        "gaps and their parts, and the GEMM table from Input Dims (calls and ns of each batch, M, "
        "N, K) are computed again from the raw JSON of each trace by "
        "`tests/analysis/test_recomputed.py`, which shares no code with the analysis. Shares are "
        "of busy time; what is null is not known from the trace, and no number stands for it.",
        "",
        "| trace | device | phase | wall / busy / gap, ms a step | kind / work / role | "
        "bound known | most idle time | null | checked by hand |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(row, json.loads(KEPT.read_bytes())),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if "--page" not in sys.argv:
        KEPT.write_text("[\n" + ",\n".join(map(json.dumps, read())) + "\n]\n", encoding="utf-8")
    KEPT.with_suffix(".md").write_text(page(), encoding="utf-8")
