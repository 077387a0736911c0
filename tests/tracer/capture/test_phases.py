"""The loops: positions, inputs and order of what is timed and profiled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunescope.tracer.calibration.texts import random_ids
from prunescope.tracer.capture.loops import loops_of
from prunescope.tracer.capture.phases import DecodeLoop, PrefillLoop, decode, prefill
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.timing import SamplePlan, take_samples
from prunescope.tracer.machine.disturbance import Disturbance
from prunescope.tracer.machine.peaks import measure_peaks
from prunescope.tracer.model import compat

pytestmark = pytest.mark.torch


def test_token_ids_are_those_of_the_seed() -> None:
    one = random_ids(1024, batch=2, length=8, seed=5)
    assert one.shape == (2, 8)
    assert torch.equal(one, random_ids(1024, batch=2, length=8, seed=5))
    assert not torch.equal(one, random_ids(1024, batch=2, length=8, seed=6))
    assert int(one.max()) < 1024


@torch.inference_mode()
def test_decode_goes_on_where_prefill_ended(tiny: Any) -> None:
    ids = random_ids(1024, batch=2, length=10, seed=0)
    cache = compat.new_cache(tiny)
    prefill(tiny, ids[:, :7], cache=cache)
    last = decode(tiny, ids[:, 7:].split(1, dim=1), cache=cache).logits
    torch.testing.assert_close(last, tiny(ids).logits[:, -1:], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_logits_policy(tiny: Any) -> None:
    ids = random_ids(1024, batch=2, length=10, seed=0)
    for logits, rows in (("last", 1), ("all", 10)):
        output = prefill(tiny, ids, cache=compat.new_cache(tiny), logits=logits)
        assert output.logits.shape == (2, rows, 1024)


@torch.inference_mode()
def test_decode_samples_and_steps_are_at_the_same_positions(tiny: Any) -> None:
    loop = DecodeLoop(
        tiny, random_ids(1024, batch=1, length=9, seed=0), prompt_len=6, logits="last"
    )
    assert loop.steps_per_sample == 3
    outputs = []
    for _ in range(2):
        loop.prepare()
        assert loop.cache.get_seq_length() == 6
        outputs.append(loop.sample().logits)
        assert loop.cache.get_seq_length() == 9
    assert torch.equal(*outputs)
    loop.prepare_step(-1)
    assert loop.cache.get_seq_length() == 5
    for index in range(-1, 3):
        if index >= 0:
            loop.prepare_step(index)
        assert loop.cache.get_seq_length() == 6 + index
        last = loop.step(index).logits
    torch.testing.assert_close(last, outputs[0], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_decode_from_a_prompt_of_one_token(tiny: Any) -> None:
    loop = DecodeLoop(
        tiny, random_ids(1024, batch=1, length=2, seed=0), prompt_len=1, logits="last"
    )
    loop.prepare_step(-1)
    loop.step(-1)
    loop.prepare_step(0)
    loop.step(0)
    assert loop.cache.get_seq_length() == 2


@torch.inference_mode()
def test_a_cache_that_cannot_be_cropped_is_filled_anew(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = DecodeLoop(
        tiny, random_ids(1024, batch=1, length=9, seed=0), prompt_len=6, logits="last"
    )
    loop.prepare()
    expected = loop.sample().logits
    monkeypatch.setattr(compat, "try_crop", lambda *_: False)
    loop.prepare()
    assert loop.cache.get_seq_length() == 6
    torch.testing.assert_close(loop.sample().logits, expected)


@torch.inference_mode()
def test_samples_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disturbance, "reasons", [])
    order: list[str] = []

    class Spy:
        steps_per_sample = 4
        cache = None

        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self) -> None:
            order.append(f"prepare {self.name}")

        def sample(self) -> None:
            order.append(self.name)

        def prepare_step(self, index: int) -> None:
            raise AssertionError(index)

        def step(self, index: int) -> None:
            raise AssertionError(index)

    spies = {"dense": Spy("d"), "pruned": Spy("p")}
    share = take_samples(spies, SamplePlan(warmup=1, repeats=2), device=torch.device("cpu"))
    dense, pruned = ["prepare d", "d"], ["prepare p", "p"]
    # A warm-up and two samples, each but the first in the turn of ABBA.
    assert order == [*dense, *pruned, *dense, *pruned, *pruned, *dense]
    assert {name: len(found) for name, found in share.samples.items()} == {"dense": 2, "pruned": 2}


@torch.inference_mode()
def test_prefill_loop_is_on_an_empty_cache(tiny: Any) -> None:
    loop = PrefillLoop(tiny, random_ids(1024, batch=1, length=6, seed=0), logits="last")
    for _ in range(2):
        loop.prepare()
        assert loop.cache.get_seq_length() == 0
        loop.sample()
        assert loop.cache.get_seq_length() == 6


def test_peaks_have_what_a_run_keeps() -> None:
    peaks = measure_peaks(torch.device("cpu"), "bf16", budget_s=0.2)
    assert set(peaks.dense_flop_per_s) == {"bf16", "fp32"}
    assert peaks.byte_per_s is not None and peaks.byte_per_s > 0
    assert peaks.kernel_floor_ns is not None and peaks.kernel_floor_ns > 0
    for dtype, peak in peaks.dense_flop_per_s.items():
        assert peak == max(r.flop_per_s for r in peaks.gemm_sweep if r.dtype == dtype)


@torch.inference_mode()
def test_a_flush_comes_before_each_sample_and_step(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunescope.tracer.capture import loops

    done: list[str] = []
    monkeypatch.setattr(loops, "CacheFlush", lambda _device: lambda: done.append("flush"))
    hook = tiny.register_forward_hook(lambda *_: done.append("forward"))
    request = TraceRequest(model="tiny-llama", phase="prefill", prompt_len=4, flush=True)
    variant = SimpleNamespace(name="dense", model=tiny)
    (loop,) = loops_of(request, "prefill", [variant], torch.device("cpu")).values()  # type: ignore[list-item]
    for index in (-1, 0):
        loop.prepare_step(index)
        loop.step(index)
    plan = SamplePlan(warmup=1, repeats=1)
    taken = take_samples({"dense": loop}, plan, device=torch.device("cpu"))
    hook.remove()
    assert done[:8] == 4 * ["flush", "forward"] and len(taken.samples["dense"]) == 1
    loop.cache = None  # as the memory of a step is counted
    assert loop.cache is None and loop.run is None and loop.steps_per_sample == 1
