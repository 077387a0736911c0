"""Steps of dynamic families that a graph can hold: the eager numbers, no shape or branch by data.

On a CPU, where there are no CUDA graphs: a step that torch.compile takes whole, and that runs on
tensors without values, reads nothing back and has the same kernels for all inputs of its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from prunescope.taxonomy.keep import kept_count
from prunescope.tracer.capture import graph_mode
from prunescope.tracer.capture.graph_mode import Step
from prunescope.tracer.capture.phases import PrefillLoop
from prunescope.tracer.routing.decisions import Sampler
from tests.tracer.static_steps import BATCH, FAMILIES, PROMPT, ids, loops, pruned, sampled

pytestmark = pytest.mark.torch
PHASES = ("prefill", "decode")
# Each family once where all take long.
# Variants need all layers of the model: tokens leave behind several of them.
VARIANT = [pytest.mark.slow, pytest.mark.all_layers]
FEW = [pytest.mark.four_layers]  # tokens leave behind two, and of two layers one is skipped


def marks(name: str) -> list[Any]:
    if " " in name:
        return VARIANT
    return FEW if name in ("token-drop", "dynamic-depth") else []


EACH = [pytest.param(name, marks=marks(name)) for name in FAMILIES]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def _static_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows of an eager step of decode as of a static one, which has a fixed number."""
    monkeypatch.setattr(Sampler, "count_successes", lambda _self, n, p: kept_count(n, 1 - p))


def whole(backend: str) -> Callable[..., Step]:
    """Return a recorder that fails where torch.compile cannot take the step whole."""

    def record(step: Step, tokens: torch.Tensor, rewind: Callable[[], None]) -> Step:
        run: Step = torch.compile(
            graph_mode._copy_code(step), dynamic=False, fullgraph=True, backend=backend
        )
        graph_mode._warm(run, tokens, rewind)
        return run

    return record


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", EACH)
def test_a_static_step_gives_the_eager_numbers(name: str, phase: str) -> None:
    model = pruned(name)
    eager, static = loops(model, phase)
    want = sampled(model, eager)
    torch.testing.assert_close(sampled(model, static), want)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", EACH)
def test_a_static_step_runs_on_tensors_without_values(name: str, phase: str) -> None:
    """FakeTensors have only a shape: `.item()`, `nonzero`, a mask as an index and a branch fail.

    The output has the same shape for every input.
    """
    model = pruned(name)
    _, static = loops(model, phase)
    static.prepare()
    token = ids()[:, :PROMPT] if phase == "prefill" else ids()[:, :1]
    real = static._forward(token).logits  # type: ignore[attr-defined]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        faked = static._forward(mode.from_tensor(token))  # type: ignore[attr-defined]
    assert faked.logits.shape == real.shape


def test_an_eager_step_that_decides_by_data_fails_without_values() -> None:
    """The check of the test before sees what it looks for."""
    model = pruned("dynamic-m by threshold")
    loop = PrefillLoop(model, ids()[:, :PROMPT], logits="all")
    loop.prepare()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        loop.ids_BS = mode.from_tensor(loop.ids_BS)
        with pytest.raises(DataDependentOutputException):
            loop.sample()


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        pytest.param(name, phase, marks=[pytest.mark.slow, *FEW] if name != "dynamic-m" else [])
        for name in FAMILIES
        for phase in PHASES
    ],
)
def test_torch_compile_takes_a_static_step_whole(name: str, phase: str) -> None:
    """`fullgraph=True` raises at the first break."""
    model = pruned(name)
    eager, static = loops(model, phase, whole("eager"))
    want = sampled(model, eager)
    torch.testing.assert_close(sampled(model, static), want)


@pytest.mark.slow
@pytest.mark.four_layers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_compiled_step_has_the_loss_of_the_eager_one(name: str, dtype: str) -> None:
    """By inductor's kernels, whose sums are in another order."""
    model = pruned(name, dtype=dtype)
    eager, static = loops(model, "prefill", graph_mode.compiled)
    want, got = sampled(model, eager).float(), sampled(model, static).float()
    assert (static.run.graphs, static.run.breaks) == (1, [])
    labels = torch.roll(ids(), -1, 1)[:, : want.shape[1]].flatten()
    losses = [
        torch.nn.functional.cross_entropy(x.flatten(0, 1), labels).item() for x in (want, got)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.slow
@pytest.mark.four_layers
@pytest.mark.parametrize(
    "name", ["dynamic-m", "token-drop", "dynamic-width", "dynamic-nk", "kv-evict"]
)
def test_torch_export_takes_a_static_prompt(name: str) -> None:
    with torch.inference_mode(mode=False), torch.no_grad():
        model = pruned(name)
        loop = loops(model, "prefill")[1]
        loop.prepare()
        loop.step(0)

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = loop._forward(tokens).logits
            return logits

    tokens = ids()[:, :PROMPT]
    with torch.inference_mode(mode=False), torch.no_grad():
        program = torch.export.export(Exported(), (tokens,), strict=False)
    names = {str(node.target) for node in program.graph.nodes}
    reads = ("aten.item", "local_scalar", "nonzero")
    assert not {name for name in names if any(word in name for word in reads)}


def test_random_numbers_of_a_static_step_are_drawn_before_each_sample() -> None:
    """The steps of a sample differ in them, and so do samples; replays of one sample do not."""
    model = pruned("dynamic-width")
    static: Any = loops(model, "decode")[1]
    static.prepare()
    static.sample()  # finds the samplers
    [numbers, *_] = static._static.random_numbers.values()
    static.prepare()
    first = numbers.clone()
    assert numbers.shape[0] == static.steps_per_sample + 1
    assert not torch.equal(numbers[0], numbers[1])
    static.sample()
    assert torch.equal(numbers, first)
    static.prepare()
    assert not torch.equal(numbers, first)
    assert int(static._static.turn) == 0


def test_a_static_step_of_decode_takes_a_fixed_number_of_rows() -> None:
    model = pruned("dynamic-m")
    static: Any = loops(model, "decode")[1]
    static.prepare()
    tally = model.model.layers[0].mlp.tally
    tally.take()
    static.sample()
    assert tally.take().active == [kept_count(BATCH, 0.5)] * static.steps_per_sample
