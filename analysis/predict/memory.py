"""What a workload needs of a device's memory, and the largest batch that fits.

In: a Setting, the last step of a workload and its prompt. Out: Memory, bytes a device. Weights and
cache are those of the theory; a step allocates the widest activations of a layer beside its input
and output, and the logits; the driver, the libraries and the allocator keep a share.
"""

from __future__ import annotations

from prunescope.analysis.predict.constants import OVERHEAD_BYTES
from prunescope.analysis.predict.setting import Setting
from prunescope.analysis.predict.side import PredictedSide
from prunescope.analysis.schema.prediction import Memory
from prunescope.taxonomy.plan import Workload


def memory(setting: Setting, last: Workload, *, prompt: Workload, pruned: bool) -> Memory:
    """What one side needs: the cache of the last step, activations of the prompt."""
    end = setting.side(last, pruned=pruned).forward
    weights, cache = end.weight_bytes, end.kv_bytes
    step = step_bytes(setting.side(prompt, pruned=pruned))
    has = setting.device.memory_bytes
    fixed = weights + OVERHEAD_BYTES
    total = fixed + cache + step
    each = (cache + step) / last.batch  # all of it grows with the sequences
    return Memory(
        device_bytes=has,
        weight_bytes=round(weights),
        kv_bytes=round(cache),
        step_bytes=round(step),
        overhead_bytes=OVERHEAD_BYTES,
        total_bytes=round(total),
        fits=None if has is None else total <= has,
        max_batch=None if has is None else max(0, int((has - fixed) // each)),
    )


def step_bytes(side: PredictedSide) -> float:
    """What a step allocates: [T, h] twice, the widest GEMM's input and output, [T_o, V] logits."""
    work, shape = side.work, side.setting.shape
    gemms = [op.gemms[0] for op in side.bounded if op.cls == "matmul" and op.role != "lm_head"]
    widest = max((g.m * (g.n + g.k) * g.batch for g in gemms), default=0)
    return work.itemsize * (2 * work.rows * shape.hidden + widest + work.head_rows * shape.vocab)
