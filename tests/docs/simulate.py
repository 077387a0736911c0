"""Simulated traces of the stories: `python -m tests.docs.simulate` writes traces/stories.

In: dimensions of a decoder. Out: traces as an engine on a GPU writes them. No GPU ran anything: a
kernel lasts as long as a roofline with whole waves of tiles says, at 75 % of the peaks of the data
sheet and a microsecond more, times what the case says of it. So the shapes are those of the
case, and the times show what a report says of such a case, not what the hardware does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunescope.analysis.trace.load import load
from tests import nsys
from tests.chrome import H100, Op, chrome, gap, k, module, op, save

FOLDER = Path(__file__).resolve().parents[2] / "traces" / "stories"
BF16 = "c10::BFloat16"
REACHED = 0.75  # of a peak, by a kernel of a simulated trace
START_US = 1.0  # of each kernel: ramping up and down


@dataclass(frozen=True)
class Chip:
    """A device: what a trace says of it, FLOP/s in bf16, B/s, units, and the name of a GEMM's
    kernel by its tile."""

    properties: dict[str, Any]
    flop_per_s: float
    byte_per_s: float
    units: int
    tile: tuple[int, int]
    kernel: str
    launch: str = "cudaLaunchKernel"
    work_items: bool = False  # grids count work-items, as hipExtModuleLaunchKernel records them


OF_H100 = Chip(
    H100, 989.4e12, 3.35e12, 132, (128, 128),
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_bias_f16"
    "_execute_segment_k_off_kernel__5x_cublas",
)  # fmt: skip
OF_MI300X = Chip(
    {"id": 0, "name": "AMD Instinct MI300X", "warpSize": 64, "numSms": 304},
    1307.4e12, 5.3e12, 304, (256, 256),
    "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT256x256x64_MI16x16x1_SN",
    "hipExtModuleLaunchKernel", work_items=True,
)  # fmt: skip
UNALIGNED = "cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_128x128_32x2_tn_align1"


@dataclass(frozen=True)
class Served:
    """A step of a served decoder: its tokens, keys of a sequence, dimensions of a layer on this
    device, chip, and the collective behind o and down where several devices share a layer."""

    tokens: int = 2048
    sequences: int = 1
    context: int = 2048
    layers: int = 32
    h: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    f: int = 14336
    vocabulary: int = 128256
    chip: Chip = OF_H100
    slower: float = 1.0  # every kernel but collectives lasts so many times as long
    step: str = "execute_context_1({tokens})_generation_0(0)"
    steps: int = 2
    gap_us: float = 1.0
    causal: bool = True
    unaligned_times: float = 1.8  # how many times as long a GEMM of odd N or K lasts
    ranks: int = 1  # with more, an all-reduce follows o and down
    waits: float = 0.0  # it lasts longer by so many times the work since the one before


def lasts(chip: Chip, *, flop: float = 0, byte: float = 0) -> float:
    """Microseconds of a kernel."""
    ideal = max(flop / chip.flop_per_s, byte / chip.byte_per_s)
    return START_US + ideal / REACHED * 1e6


def grid(chip: Chip, x: int, y: int = 1, z: int = 1) -> tuple[int, int, int]:
    """Blocks of 256 threads as the trace of the chip counts them."""
    return (x * 256 if chip.work_items else x, y, z)


def linear(case: Served, n: int, k_in: int, m: int | None = None) -> Op:
    """[m, k_in] times [k_in, n]: whole waves of whole tiles."""
    chip, m = case.chip, m or case.tokens
    across, down = chip.tile
    tiles = math.ceil(m / down) * math.ceil(n / across)
    waves = math.ceil(tiles / chip.units)
    flop = 2.0 * waves * chip.units * across * down * k_in if m >= down else 2.0 * m * n * k_in
    byte = 2.0 * (m * k_in + k_in * n + m * n)
    odd = n % 2 or k_in % 2
    us = lasts(chip, flop=flop, byte=byte) * (case.unaligned_times if odd else 1) * case.slower
    kernel = k(us=us, name=UNALIGNED if odd else chip.kernel, gap_us=case.gap_us,
               grid=grid(chip, math.ceil(n / across), math.ceil(m / down)), block=(256, 1, 1),
               registers=168, shared=200_000 if chip is OF_H100 else 65_536)  # fmt: skip
    return op("aten::mm", [m, k_in], [k_in, n], dtype=BF16, kernels=[kernel])


def moved(case: Served, name: str, kernel: str, *dims: list[int], times: int = 1) -> Op:
    """An element-wise op of an engine, which reads or writes each operand so many `times`."""
    byte = times * sum(2.0 * math.prod(one) for one in dims)
    us = lasts(case.chip, byte=byte) * case.slower
    done = k(
        us=us, name=kernel, gap_us=case.gap_us, grid=grid(case.chip, dims[0][0]), block=(256, 1, 1)
    )
    return op(name, *dims, dtype=BF16, kernels=[done])


def attention(case: Served) -> Op:
    """Fused; causal, a prompt reads half of the square, and a decode step its context."""
    rows = case.tokens // case.sequences
    keys = (case.context + 1) / 2 if case.causal and rows > 1 else case.context
    cached = 2.0 * case.sequences * case.context * case.kv_heads * case.head
    asked = 2.0 * case.tokens * case.heads * case.head
    flop = 4.0 * case.tokens * keys * case.heads * case.head
    us = lasts(case.chip, flop=flop, byte=2 * (cached + asked)) * case.slower
    q = [case.sequences, case.heads, rows, case.head]
    kv = [case.sequences, case.kv_heads, case.context, case.head]
    flash = f"void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<{case.head}, 128, 64, 4>>"
    name = flash if case.chip is OF_H100 else "aiter::fmha_fwd_hd128_bf16_causal"
    done = k(
        us=us,
        name=name,
        gap_us=case.gap_us,
        grid=grid(case.chip, math.ceil(rows / 128), case.sequences, case.heads),
        block=(256, 1, 1),
    )
    masks = str(case.causal and rows > 1)
    return op("aten::_scaled_dot_product_flash_attention", q, kv, kv, dtype=BF16,
              concrete=("", "", "", "0.", masks), kernels=[done])  # fmt: skip


def layer(case: Served) -> list[Op]:
    """Attention with its projections, then the MLP, with the all-reduce behind each."""
    t, h, f = case.tokens, case.h, case.f
    q, kv = case.heads * case.head, case.kv_heads * case.head
    norm = moved(case, "_C::fused_add_rms_norm", "vllm::fused_add_rms_norm_kernel", [t, h], [t, h],
                 [h], times=2)  # fmt: skip
    gated = moved(case, "_C::silu_and_mul", "vllm::act_and_mul_kernel", [t, f], [t, 2 * f])
    attends = [norm, linear(case, q + 2 * kv, h), attention(case), linear(case, h, q)]
    mlp = [norm, linear(case, 2 * f, h), gated, linear(case, h, f)]
    return [*attends, *all_reduce(case, attends), *mlp, *all_reduce(case, mlp)]


def all_reduce(case: Served, since: list[Op]) -> list[Op]:
    """Sums [tokens, h] over the ranks; it ends on all at once, so a fast rank waits in it."""
    if case.ranks == 1:
        return []
    worked = sum(kernel.ns for one in since for kernel in one.kernels) / 1000
    us = 12.0 + case.waits * worked
    name = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
    done = k(us=us, name=name, gap_us=case.gap_us, grid=(24, 1, 1), block=(512, 1, 1))
    return [op("vllm::all_reduce", [case.tokens, case.h], dtype=BF16, kernels=[done])]


def served(case: Served) -> dict[str, Any]:
    """The trace of `case.steps` equal steps."""
    return served_steps([case] * case.steps)


def served_steps(cases: list[Served]) -> dict[str, Any]:
    """The trace of steps that may differ in their times."""
    chip, steps = cases[0].chip, []
    for case in cases:
        name = case.step.format(tokens=case.tokens, sequences=case.sequences)
        head = linear(case, case.vocabulary, case.h, m=case.sequences)
        steps.append(module(name, *layer(case) * case.layers, head))
    trace = chrome(*steps)
    trace["deviceProperties"] = [dict(chip.properties)]
    for event in trace["traceEvents"]:
        if event["name"] == "cudaLaunchKernel":
            event["name"] = chip.launch
    return trace


def odd_width() -> dict[str, dict[str, Any]]:
    """Llama-3.1-8B, a prompt of 2,048 tokens: a quarter of the heads and MLP channels removed,
    once to an odd number of channels and once to a multiple of 64."""
    narrow = Served(heads=24, kv_heads=6)
    return {"dense": served(Served()), "pruned": served(replace(narrow, f=10749)),
            "rounded": served(replace(narrow, f=10752))}  # fmt: skip


def same_waves() -> dict[str, dict[str, Any]]:
    """The same model and prompt on an MI300X with 304 units: an eighth of the MLP's channels, which
    leaves a wave more, and as many as fill whole waves."""
    dense = Served(chip=OF_MI300X, step="step[EXTEND bs={sequences} toks={tokens}]")
    return {"dense": served(dense), "pruned": served(replace(dense, f=12544)),
            "whole-waves": served(replace(dense, f=9728))}  # fmt: skip


def slow_rank() -> dict[str, dict[str, Any]]:
    """Llama-3.1-8B on eight H100s, decode of 64 sequences: a quarter of the MLP's
    channels removed. Rank 3 of the pruned run is slower by a third; the others wait in all-reduce,
    which ends on all ranks at once."""
    dense = Served(tokens=64, sequences=64, context=1024, layers=4, heads=4, kv_heads=1, f=1792,
                   vocabulary=16032, step="execute_context_0(0)_generation_{sequences}({tokens})",
                   ranks=8)  # fmt: skip
    pruned = replace(dense, f=1344)
    sides = {}
    for rank in range(8):
        slow = {"slower": 4 / 3} if rank == 3 else {"waits": 1 / 3}
        for side, case in (("dense", dense), ("pruned", replace(pruned, **slow))):
            trace = served(case)
            trace["distributedInfo"] = {"backend": "nccl", "rank": rank, "world_size": 8}
            sides[f"{side}/rank{rank}"] = trace
    return sides


HOST_US = 6.0  # in which eager PyTorch dispatches an op


def eager(*ops: Op) -> list[Any]:
    """Ops of eager PyTorch: the device idles where the host takes longer than the kernel before."""
    items: list[Any] = []
    for one in ops:
        lasted = sum(kernel.ns for kernel in one.kernels) / 1000
        items += [one, *([gap(us=HOST_US - lasted, launch=True)] if lasted < HOST_US else [])]
    return items


def vit(batch: int, merges: tuple[int, ...] = (0,) * 12, *, h: int = 768) -> dict[str, Any]:
    """ViT-B/16 on an H100, eager, names of timm: 197 tokens an image. `merges`: how many pairs of
    similar tokens each block merges behind its attention, as ToMe does."""
    case = Served(gap_us=0.0, h=h, causal=False)

    def row_ops(tokens: int, *names: str, width: int = h) -> list[Op]:
        return [moved(case, name, "at::native::elementwise_kernel", [batch * tokens, width],
                      [batch * tokens, width], times=2) for name in names]  # fmt: skip

    def product(tokens: int, n: int, k_in: int) -> Op:
        return linear(case, n, k_in, m=batch * tokens)

    def block(i: int, tokens: int, fewer: int) -> list[Any]:
        left, half = tokens - fewer, tokens // 2
        heads = replace(case, tokens=batch * tokens, sequences=batch, context=tokens, heads=12,
                        kv_heads=12, head=64)  # fmt: skip
        alike = k(us=lasts(OF_H100, flop=2.0 * batch * half * half * h), name="gemm")
        scores = op("aten::bmm", [batch, half, h], [batch, h, half], dtype=BF16, kernels=[alike])
        sort = op("aten::sort", [batch, half], kernels=[k(us=12.0, name="radixSortKVInPlace")])
        merging = [*row_ops(half, "aten::linalg_vector_norm", "aten::div"), scores,
                   *row_ops(half, "aten::max", width=half), sort,
                   *row_ops(half, "aten::gather", "aten::gather", "aten::scatter_reduce"),
                   *row_ops(left, "aten::cat")]  # fmt: skip
        at = f"blocks.{i}"
        return [module(at, *(module(f"{at}.{name}", *eager(*ops)) for name, ops in (
            ("norm1", row_ops(tokens, "aten::native_layer_norm")),
            ("attn.qkv", [product(tokens, 3 * h, h)]),
            ("attn", [attention(heads)]),
            ("attn.proj", [product(tokens, h, h)]),
            ("merge", merging if fewer else []),
            ("norm2", row_ops(left, "aten::native_layer_norm")),
            ("mlp.fc1", [product(left, 4 * h, h)]),
            ("mlp.act", row_ops(left, "aten::gelu", width=4 * h)),
            ("mlp.fc2", [product(left, h, 4 * h)]),
        ) if ops), *eager(*row_ops(left, "aten::add")))]  # fmt: skip

    work = [x for i, n in enumerate(merges) for x in block(i, 197 - sum(merges[:i]), n)]
    head = module("head", *eager(linear(case, 1000, h, m=batch)))
    return chrome(*(module(f"ProfilerStep#{n}", *work, head) for n in range(3)))


def merged_tokens() -> dict[str, dict[str, Any]]:
    """ViT-B/16 of one image and of 64: every block merges 8 tokens, or the third alone 56."""
    sides = {"dense": (0,) * 12, "merged": (8,) * 12, "once": (0, 0, 56, *(0,) * 9)}
    return {f"{side}-{batch}": vit(batch, merges)
            for side, merges in sides.items() for batch in (1, 64)}  # fmt: skip


def masked(masks: bool, *, layers: int = 4, **narrow: int) -> dict[str, Any]:
    """Forward steps of a Llama with modules, 2,048 tokens, on an H100; with `masks`, each linear
    first multiplies its weight by its mask, as torch.nn.utils.prune does."""
    case = Served(**narrow)
    t, h, f = case.tokens, case.h, case.f
    q, kv = case.heads * case.head, case.kv_heads * case.head

    def linears(at: str, **sizes: tuple[int, int]) -> list[Any]:
        def mask(n: int, k_in: int) -> list[Op]:
            kernel = "at::native::elementwise_kernel"
            one = moved(case, "aten::mul", kernel, [n, k_in], [n, k_in], times=2)
            return [one] if masks else []

        return [
            module(f"{at}.{name}_proj", *mask(n, k_in), linear(case, n, k_in))
            for name, (n, k_in) in sizes.items()
        ]

    def block(i: int) -> Any:
        at = f"model.layers.{i}"
        norm = moved(case, "aten::rms_norm", "at::native::layer_norm_kernel", [t, h], [t, h])
        add = moved(case, "aten::add", "at::native::elementwise_kernel", [t, h], [t, h], times=2)
        gated = moved(case, "aten::mul", "at::native::elementwise_kernel", [t, f], [t, f], times=2)
        return module(
            at, module(f"{at}.input_layernorm", norm),
            module(f"{at}.self_attn", *linears(f"{at}.self_attn", q=(q, h), k=(kv, h), v=(kv, h)),
                   attention(case), *linears(f"{at}.self_attn", o=(h, q))), add,
            module(f"{at}.post_attention_layernorm", norm),
            module(f"{at}.mlp", *linears(f"{at}.mlp", gate=(f, h), up=(f, h)), gated,
                   *linears(f"{at}.mlp", down=(h, f))), add,
        )  # fmt: skip

    head = module("lm_head", linear(case, case.vocabulary, h, m=1))
    blocks = [block(i) for i in range(layers)]
    return chrome(*(module(f"ProfilerStep#{n}", *blocks, head) for n in range(3)))


def masks() -> dict[str, dict[str, Any]]:
    """Four layers of Llama-3.1-8B: dense, with masks of half of the channels, and with these
    channels removed."""
    return {"dense": masked(False), "masked": masked(True), "removed": masked(False, f=7168)}


def narrow_mlp() -> dict[str, dict[str, Any]]:
    """Qwen2.5-0.5B as vLLM serves it, decode of 32 sequences; three quarters of its MLP's
    channels are left."""
    dense = Served(tokens=32, sequences=32, context=512, layers=24, h=896, heads=14, kv_heads=2,
                   head=64, f=4864, vocabulary=151936,
                   step="execute_context_0(0)_generation_{sequences}({tokens})")  # fmt: skip
    return {"dense": served(dense), "pruned": served(replace(dense, f=3648))}


def commits() -> dict[str, dict[str, Any]]:
    """Two layers of Llama-3.1-8B as vLLM serves them, decode of 32 sequences in eight steps, whose
    times spread by 1 %. From the third of five commits on, kernels take 8 % longer."""
    dense = Served(tokens=32, sequences=32, context=1024, layers=2,
                   step="execute_context_0(0)_generation_{sequences}({tokens})")  # fmt: skip
    traces = {}
    for number, commit in enumerate(("a1f09c2", "b2c47de", "c3d91aa", "d4e16b0", "e5f7720")):
        level = 1.08 if number >= 2 else 1.0
        spread = [level * (1 + 0.0025 * ((7 * i + 3 * number) % 5 - 2)) for i in range(8)]
        traces[commit] = served_steps([replace(dense, slower=slower) for slower in spread])
    return traces


CASES = {"odd-width": odd_width, "merged-tokens": merged_tokens, "nsys": narrow_mlp,
         "same-waves": same_waves, "slow-rank": slow_rank, "masks": masks,
         "commits": commits}  # fmt: skip
AS_NSYS = ("nsys",)  # written as exports of Nsight Systems: kernels and ranges, no shapes


def write(folder: Path) -> None:
    """Every trace of every case, below `folder`."""
    for name, case in CASES.items():
        for side, trace in case().items():
            path = folder / name / f"{side}.json.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in AS_NSYS:
                export(trace, path.with_name(f"{side}.sqlite"))
            else:
                save(trace, path)


def export(trace: dict[str, Any], path: Path) -> None:
    """The trace as Nsight Systems exports it where no op is annotated."""
    events = [event for event in trace["traceEvents"] if event["cat"] != "cpu_op"]
    as_chrome = save({**trace, "traceEvents": events}, path.with_suffix(".json"))
    path.unlink(missing_ok=True)
    nsys.write(load(as_chrome), path)
    as_chrome.unlink()


if __name__ == "__main__":
    write(FOLDER)
