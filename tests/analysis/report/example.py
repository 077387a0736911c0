"""Reports built by hand: two phases against a baseline, and a bare trace alone. All sums close."""

from __future__ import annotations

import msgspec

from prunescope.analysis.schema.report import (
    FamilyVerdict,
    Finding,
    GemmRow,
    KernelRow,
    Ladder,
    LedgerPart,
    Pairing,
    Phase,
    Report,
    Row,
)
from prunescope.analysis.schema.sides import Unprofiled

MS = 1e6
HOSTILE = '<img src=x onerror=alert(1)>"\\input{x}=cmd|\x1b[31m'
CUTLASS = (
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x128_32x5_tn_align8>"
    "(cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x128_32x5_tn_align8::Params)"
)


def part(name: str, role: str | None, cls: str | None, ms: float, *evidence: str) -> LedgerPart:
    return LedgerPart(
        name=name, role=role, cls=cls, ns=ms * MS, noise_ns=0.02 * MS, evidence=list(evidence)
    )


def row(name: str, ms: float, *parts: LedgerPart, noise: float | None = 0.11) -> Row:
    return Row(
        row=name,
        ns=ms * MS,
        ci95=[(ms - 0.3) * MS, (ms + 0.4) * MS],
        noise_ns=None if noise is None else noise * MS,
        parts=list(parts),
    )


def prefill_ledger() -> list[Row]:
    """140 x 0.75 = 105; 105 + 9.2 + 1.6 + .05 + 4.75 - 1.5 + 1.9 = 121."""
    return [
        row("dense", 140.0, noise=None),
        row("promised", 105.0, noise=None),
        row(
            "coverage", 9.2,
            part("lm_head untouched", "lm_head", "matmul", 7.1, "aten::mm [512, 49152, 576]"),
            part("attention untouched", "attention", "attention", 2.6, "flash_attention"),
            part("q: 2 of 3 heads", "q", "matmul", -0.5, "aten::mm [512, 384, 576]"),
        ),
        row("roofline_shift", 1.6, part("down", "down", "matmul", 1.6, "mm [512, 576, 1152]")),
        row("shape", 0.05, part("gate", "gate", "matmul", 0.05)),
        row(
            "kernel_efficiency", 4.75,
            part("gate", "gate", "matmul", 3.0, CUTLASS),
            part("up", "up", "matmul", 1.75, CUTLASS),
        ),
        row("added_work", -1.5, part("casts that went", "o", "layout", -1.5, "aten::copy_")),
        row("launch_idle", 1.9, part("gaps", None, None, 1.9)),
        row("pruned", 121.0, noise=None),
    ]  # fmt: skip


def decode_ledger() -> list[Row]:
    """36 x .75 = 27; 27 + 3 + .4 + 0 + 2.1 + 0 + 1.5 = 34."""
    rows = [("dense", 36.0), ("promised", 27.0), ("coverage", 3.0), ("roofline_shift", 0.4)]
    rows += [("shape", 0.0), ("kernel_efficiency", 2.1), ("added_work", 0.0)]
    rows += [("launch_idle", 1.5), ("pruned", 34.0)]
    return [row(name, ms, noise=0.2) for name, ms in rows]


def gemm(role: str, group: str, axis: str | None, *mnk: int, **more: object) -> GemmRow:
    m, n, k = mnk
    plain: dict[str, object] = {
        "layers": list(range(30)), "op": "aten::mm", "kind": "gemm", "batch": 1, "dtype": "fp32",
        "count": 30, "flop": 2.0 * m * n * k, "bytes": 4.0 * (m * k + n * k + m * n),
        "busy_ns": 6.1 * MS, "helper_ns": 0.0, "ideal_ns": 4.8 * MS, "bound": "compute",
        "efficiency": 4.8 / 6.1, "kernels": [f"sgemm_{role}"],
    }  # fmt: skip
    fields = {"role": role, "group": group, "axis": axis, "m": m, "n": n, "k": k, **plain, **more}
    return msgspec.convert(fields, GemmRow)


def gemms(tokens: int) -> list[GemmRow]:
    return [
        gemm("q", "qkv", "N", tokens, 384, 576, dense_m=tokens, dense_n=576, dense_k=576,
             keep={"n": 2 / 3}, dense_busy_ns=7.9 * MS, promised_ns=5.9 * MS, loss_ns=0.2 * MS),
        gemm("qk", "qk", "heads", tokens, tokens, 64, batch=6, split=True, kind="attention",
             op="aten::scaled_dot_product_attention", keep={"batch": 2 / 3}),
        gemm("o", "o", "K", tokens, 576, 384, dense_m=tokens, dense_n=576, dense_k=576,
             keep={"k": 2 / 3}, dense_busy_ns=7.9 * MS, promised_ns=5.9 * MS, loss_ns=0.2 * MS),
        gemm("gate", "gate_up", "N", tokens, 1152, 576, dense_m=tokens, dense_n=1536, dense_k=576,
             keep={"n": 0.75}, busy_ns=21.3 * MS, dense_busy_ns=24.4 * MS, promised_ns=18.3 * MS,
             loss_ns=3.0 * MS),
        gemm("down", "down", "K", tokens, 576, 1152, dense_m=tokens, dense_n=576, dense_k=1536,
             keep={"k": 0.75}, busy_ns=17.9 * MS, dense_busy_ns=25.0 * MS, promised_ns=18.8 * MS,
             loss_ns=-0.9 * MS, efficiency=1.04),
        gemm("lm_head", "lm_head", "none", 1, 49152, 576, dense_m=1, dense_n=49152, dense_k=576,
             busy_ns=8.2 * MS, bound="memory", dense_busy_ns=8.2 * MS, promised_ns=6.1 * MS,
             loss_ns=2.1 * MS, count=1, layers=[]),
        gemm("v", "qkv", "gone", tokens, 192, 576, count=0, busy_ns=0.0, ideal_ns=None,
             flop=None, bytes=None, efficiency=None, bound=None, layers=[4]),
    ]  # fmt: skip


def phase(**more: object) -> Phase:
    """100 busy + 20 gap + 1 tail = 121 ms."""
    plain: dict[str, object] = {
        "steps": 5, "wall_ns": 121 * MS, "busy_ns": 100 * MS, "gap_ns": 20 * MS,
        "tail_ns": 1 * MS, "lead_ns": None, "spill": {"events": 0, "ns": 0},
        "late": {"events": 0, "ns": 0}, "left_out": {"events": 0, "ns": 0},
        "tokens_per_s": 512 / 0.121, "peak_memory_bytes": None, "weight_bytes": 412_000_000,
        "kv_bytes": None, "observer_ratio": 1.0, "domain": "unprofiled", "observer_share": 0.099,
        "coverage": {"kind": 0.998, "work": 0.964, "role": 1.0},
        "bound": {"compute": 70 * MS, "memory": 22 * MS, "latency": 4.4 * MS,
                  "unknown": 3.6 * MS, "launch": 20 * MS},
        "kinds": {"gemm": 71 * MS, "attention": 14 * MS, "norm": 8 * MS, "elementwise": 6.8 * MS,
                  "unknown": 0.2 * MS},
        "roles": {"gate": 21.3 * MS, "up": 21 * MS, "attention": 57.7 * MS},
        "baseline": {"steps": 5, "wall_ns": 155 * MS, "busy_ns": 150 * MS, "gap_ns": 4 * MS,
                     "tail_ns": MS, "tokens_per_s": 512 / 0.14, "weight_bytes": 538_000_000},
        "sparsity": {"nominal": 0.25, "parameters": 0.187, "flop": 0.201, "bytes": None},
    }  # fmt: skip
    return msgspec.convert({**_parts(), **plain, **more}, Phase)


def _parts() -> dict[str, object]:
    unprofiled = Unprofiled(
        median=121 * MS, mean=121 * MS, ci95=[120.1 * MS, 122.2 * MS], samples=[121_000_000] * 20
    )
    ladder = Ladder(
        nominal=4 / 3, flop=1.25, coverage=1.23, roofline=1.21, busy=1.19, realised=140 / 121,
        realised_ci95=[1.14, 1.17], share_of_bound=140 / 121 / 1.21, coverage_ci95=[1.22, 1.24],
        roofline_ci95=[1.2, 1.22], busy_ci95=[1.17, 1.2], share_of_bound_ci95=[0.94, 0.97],
    )  # fmt: skip
    family = FamilyVerdict(
        id="static-nk", confidence=0.93, alternatives=["static-nk-mlp"],
        evidence=["N of gate and up and K of down fell together, 1536→1152, in 30 of 30 layers"],
        parts=[{"id": "static-nk", "share": 1.0}],
    )  # fmt: skip
    findings = [
        Finding(
            id="lm-head-share", severity="warning", predicted_ns=5.2 * MS,
            text="lm_head takes 6.8 % of the pruned wall and was not pruned",
            evidence=["aten::mm [512, 49152, 576]: 8.20 ms a step"],
            change="ask for the last token's logits only (--logits last)",
        ),
        Finding(
            id="masked", severity="critical", predicted_ns=None,
            text="zeros are in dense tensors: 0 sparse kernels in 224 GEMMs",
            evidence=[], change=None,
        ),
    ]  # fmt: skip
    kernels = [
        KernelRow(name=CUTLASS, kind="gemm", role="gate", count=60, busy_ns=42.3 * MS,
                  bound="compute", efficiency=0.79),
        KernelRow(name="aten::mul", kind="elementwise", role="activation", count=30,
                  busy_ns=6.8 * MS, bound="memory", efficiency=None),
    ]  # fmt: skip
    unknown = [
        KernelRow(name="aten::_weird", kind="unknown", role="unknown", count=1, busy_ns=0.2 * MS,
                  bound=None, efficiency=None)
    ]  # fmt: skip
    return {
        "gemms": gemms(512),
        "pairing": Pairing(matched=362, removed=0, added=3, alignment="number"),
        "family": family, "ladder": ladder, "ledger": prefill_ledger(), "findings": findings,
        "unprofiled_ns": unprofiled, "kernels": kernels, "unknown_kernels": unknown,
    }  # fmt: skip


def two_phases() -> Report:
    """prefill and decode of a pruned CPU run against its dense baseline."""
    ladder = Ladder(
        nominal=4 / 3, flop=1.25, coverage=1.2, roofline=1.05, busy=1.09, realised=36 / 34,
        realised_ci95=[1.02, 1.1], share_of_bound=36 / 34 / 1.05,
    )  # fmt: skip
    decode = phase(
        wall_ns=35.5 * MS, busy_ns=34 * MS, gap_ns=1.4 * MS, tail_ns=0.1 * MS, steps=8,
        ladder=ladder, ledger=decode_ledger(), gemms=gemms(1), kv_bytes=11_800_000,
        notes=["between captures walls of a quiet machine moved by about 1.4 %"],
        observer_ratio=35.5 / 34,
        unprofiled_ns=Unprofiled(median=34 * MS, mean=34 * MS, ci95=[33.8 * MS, 34.3 * MS],
                                 samples=[34_000_000] * 20),
    )  # fmt: skip
    assert decode.baseline is not None and decode.tokens_per_s is not None
    decode.baseline.tokens_per_s = decode.tokens_per_s * 34 / 36
    return Report(
        tool="prunescope 0.1.0",
        subject={"name": "smollm2-nk25", "model": "SmolLM2-135M", "method": "static-nk",
                 "dtype": "fp32"},
        baseline={"name": "smollm2-nk25/dense"},
        device={"name": "cpu, 2 threads", "measured": True,
                "peaks": {"dense_flop_per_s": {"fp32": 2.7e11}, "byte_per_s": 2.1e10},
                "source": "measured on this device"},
        phases={"prefill": phase(), "decode": decode},
    )  # fmt: skip


def alone(kernel: str = CUTLASS) -> Report:
    """A bare trace without baseline or samples; 34 of 1,707 events spill."""
    bare: dict[str, object] = {
        "steps": 1, "unprofiled_ns": None, "observer_ratio": None, "observer_share": None,
        "domain": "profiled", "ladder": None, "ledger": None, "pairing": None, "family": None,
        "baseline": None, "sparsity": {}, "tokens_per_s": None, "weight_bytes": None,
        "spill": {"events": 509, "ns": 14_760_123}, "late": {"events": 2, "ns": 3100},
        "left_out": {"events": 4, "ns": 900}, "lead_ns": 1_234_567.0,
        "findings": [],
        "gemms": [gemm("gate", "gate_up", None, 8944, 2816, 1024, kernels=[kernel]),
                  gemm("unknown", "other", None, 8, 8, 8, batch=None,
                       flop=None, bytes=None, ideal_ns=None, bound=None, efficiency=None, m=None,
                       n=None, k=None)],
        "kernels": [KernelRow(name=kernel, kind="gemm", role="gate", count=24, busy_ns=6.1 * MS,
                              bound="compute", efficiency=0.79)],
    }  # fmt: skip
    return Report(
        tool="prunescope 0.1.0", subject={"name": "trace.json.gz"}, baseline=None,
        device={"name": "h100-sxm", "source": "data sheet", "measured": False,
                "peaks": {"dense_flop_per_s": {"bf16": 9.894e14}, "byte_per_s": 3.35e12}},
        phases={"trace": phase(**bare)}, warnings=["the trace says nothing of its dtype"],
    )  # fmt: skip


def hostile(report: Report) -> Report:
    """The report with the attack in every string that a trace, a manifest or a user can set."""
    plain = msgspec.to_builtins(report)
    fixed = {"row", "severity", "domain", "tool", "class", "axis", "bound", "group"}
    return msgspec.convert(_poisoned(plain, fixed), Report)


def _poisoned(value: object, fixed: set[str], key: str = "") -> object:
    if isinstance(value, dict):
        return {
            (HOSTILE if key == "phases" and i == 0 else k): _poisoned(v, fixed, k)
            for i, (k, v) in enumerate(value.items())
        }
    if isinstance(value, list):
        return [_poisoned(v, fixed, key) for v in value]
    return HOSTILE + value if isinstance(value, str) and key not in fixed else value
