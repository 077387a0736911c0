"""Dynamic K: weights of inputs that are zero are not read, where no token needs them."""

from __future__ import annotations

import pytest

from prunescope.analysis.predict.costs import expected_speedup
from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.setting import resolve, workloads
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import family
from prunescope.taxonomy.methods import family_of
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.pruners import pruner

SHAPE = ModelShape.from_config(preset_config("llama-2-7b"))


def ops(method: str, sparsity: float, **sizes: int) -> dict[str, Op]:
    name, knobs = family_of(method)
    pruning, work = family(name), Workload(phase="decode", prompt_len=512, **sizes)
    return {op.name: op for op in pruning.theory(SHAPE, work, pruning.point(sparsity, dict(knobs)))}


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_column_is_read_where_any_token_needs_it(batch: int) -> None:
    q = ops("teal", 0.5, batch=batch)["q"]
    assert q.weight_bytes == 2 * 4096**2 * (1 - 0.5**batch)
    assert q.flop == 2 * batch * 4096**2 * 0.5
    assert q.stored_bytes == 2 * 4096**2  # all of it stays in memory
    assert q.union == 1 - 0.5**batch


def test_what_teal_and_cats_skip() -> None:
    dense = ops("teal", 0.0)
    for method, whole in (("teal", ()), ("cats", ("q", "k", "v", "o", "gate"))):
        by_name = ops(method, 0.4)
        for role in ("q", "k", "v", "o", "gate", "up", "down"):
            share = by_name[role].bytes / dense[role].bytes
            assert share == pytest.approx(1 if role in whole else 0.6, abs=1e-3), role
        assert by_name["lm_head"].bytes == dense["lm_head"].bytes


def gain(method: str, sparsity: float, phase: str, batch: int = 1) -> float:
    request = PredictRequest(model="llama-2-7b", device="rtx-a6000", dtype="fp16", phase=phase,
                             batch=batch)  # fmt: skip
    setting, _ = resolve(request, method, sparsity, [])
    (work,) = workloads(request, setting)
    return expected_speedup(setting, work)


def test_it_pays_for_one_token_and_not_for_a_prompt() -> None:
    # arXiv 2408.14690: up to 1.53 and 1.8 at 40 and 50 %, of one sequence
    assert gain("teal", 0.4, "decode") == pytest.approx(1.53, rel=0.05)
    assert gain("teal", 0.5, "decode") == pytest.approx(1.80, rel=0.05)
    assert gain("teal", 0.5, "decode", batch=8) < 1.01
    assert gain("teal", 0.5, "prefill") == pytest.approx(1)


def test_it_is_theory_alone() -> None:
    with pytest.raises(PrunescopeError, match="cannot be traced"):
        pruner("dynamic-k")
