"""A user's own loop and a user's own method."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import prunescope
from prunescope.analysis.pipeline import analyze
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run import read_run
from prunescope.tracer.capture import device_state
from prunescope.tracer.capture.user_capture import capture
from prunescope.tracer.machine import disturbance
from prunescope.tracer.model import compat
from tests.small_capture import PEAKS
from tests.tracer.mixtures import mixture

pytestmark = pytest.mark.torch

IDS = torch.arange(24).reshape(2, 12)
FEW: dict[str, Any] = {"warmup": 1, "repeats": 2, "steps": 2}


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_state, "measure_peaks", lambda *_: PEAKS)


def loop(model: Any, count: int, **options: Any) -> None:
    with capture(model, **FEW, **options) as c, torch.inference_mode():
        for _ in range(count):
            with c.step():
                model(IDS, logits_to_keep=1)


def test_a_loop_becomes_a_run(tiny: Any, tmp_path: Path) -> None:
    loop(tiny, 8, out=tmp_path / "run")
    run = read_run(tmp_path / "run" / "dense")
    phase = run.phases["prefill"]
    assert (phase.batch, phase.prompt_len, phase.tokens_per_step) == (2, 12, 24)
    assert (phase.logits, phase.positions, phase.steps) == ("last", [0, 12], 2)
    assert len(phase.samples_ns) == 2
    assert run.pruning is None
    assert run.census is not None
    raw = gzip.decompress((tmp_path / "run/dense/prefill.trace.json.gz").read_bytes())
    names = [e["name"] for e in json.loads(raw)["traceEvents"]]
    assert names.count("model.layers.0.mlp.up_proj") == 2
    assert [n for n in names if n.startswith("prunescope.step#")] == [
        "prunescope.step#warmup",
        "prunescope.step#0",
        "prunescope.step#1",
    ]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.modules())


def test_a_loop_in_placements(tiny: Any, tmp_path: Path) -> None:
    """3 x (1 + 1) + 7 + 3 steps; the weights move twice, and stay parameters."""
    where = tiny.model.norm.weight.data_ptr()
    options = {"warmup": 1, "repeats": 7, "steps": 2, "placements": 3}
    with capture(tiny, out=tmp_path / "run", **options) as c, torch.inference_mode():
        for _ in range(16):
            with c.step():
                tiny(IDS, logits_to_keep=1)
    phase = read_run(tmp_path / "run" / "dense").phases["prefill"]
    assert [seat.samples for seat in phase.placements] == [2, 2, 3]
    assert [seat.steps for seat in phase.placements] == [1, 1, 1]
    assert phase.steps == 3
    assert tiny.model.norm.weight.data_ptr() != where
    assert not tiny.model.norm.weight.is_inference()
    assert tiny.model.norm.weight.untyped_storage().nbytes() < 2 * tiny.model.norm.weight.nbytes
    raw = gzip.decompress((tmp_path / "run/dense/prefill.trace.json.gz").read_bytes())
    names = [e["name"] for e in json.loads(raw)["traceEvents"]]
    labels = [n.partition("#")[2] for n in names if n.startswith("prunescope.step#")]
    assert labels == ["warmup", "0", "1", "2"]
    report = analyze(tmp_path / "run").report.phases["prefill"]
    assert report.unprofiled_ns is not None
    assert report.unprofiled_ns.placements == [2, 2, 3]


def _told(took: int, reasons: list[str]) -> SimpleNamespace:
    return SimpleNamespace(elapsed_ns=took, reasons=reasons, switches=2)


def test_a_loop_beside_other_work_is_not_valid(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples and profiled steps are watched, on the host and on the device; no step is run again,
    and what ran beside the first calls counts for nothing."""
    monkeypatch.setattr(disturbance, "between", lambda *_: _told(10**9, ["other processes"]))
    monkeypatch.setattr(disturbance, "device_troubles", lambda _device: ["clocks held down"])
    loop(tiny, 6, out=tmp_path / "run")
    phase = read_run(tmp_path / "run" / "dense").phases["prefill"]
    (placement,) = phase.placements
    both = ["other processes", "clocks held down"]
    assert (placement.samples, placement.disturbed, placement.reasons) == (2, 2, both)
    assert (placement.steps, placement.steps_disturbed) == (2, both)
    assert placement.switches == 4
    assert phase.has_disturbed_samples and phase.has_disturbed_steps
    found = analyze(tmp_path / "run").report.phases["prefill"].findings
    assert [one.severity for one in found if one.id == "timing-not-valid"] == ["critical"]


@pytest.mark.parametrize(("repeats", "disturbed"), [(4, 4), (1, 0)])
def test_short_steps_of_a_loop_are_judged_together(
    repeats: int, disturbed: int, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 50 ms, too short for ticks to tell; all of them, in every placement, are not."""
    readings = itertools.count()
    monkeypatch.setattr(disturbance, "read", lambda: next(readings))

    def told(before: Any, after: Any, _device: Any) -> Any:
        steps = (after - before + 1) // 2  # two readings each
        return _told(steps * 50_000_000, ["other processes"] if steps > 1 else [])

    monkeypatch.setattr(disturbance, "between", told)
    options = {"warmup": 1, "repeats": 2 * repeats, "steps": 2, "placements": 2}
    with capture(tiny, out=tmp_path / "run", **options) as c, torch.inference_mode():
        for _ in range(2 * 2 + 2 * repeats + 2):
            with c.step():
                tiny(IDS, logits_to_keep=1)
    phase = read_run(tmp_path / "run" / "dense").phases["prefill"]
    assert [seat.samples for seat in phase.placements] == [repeats] * 2
    assert [seat.disturbed for seat in phase.placements] == [disturbed] * 2
    assert [seat.steps_disturbed for seat in phase.placements] == [[], []]  # one step in each


@pytest.mark.parametrize(("noisy", "said"), [({0}, []), ({0, 2}, ["waits"])])
def test_profiled_steps_are_marked_where_most_were_disturbed(
    noisy: set[int], said: list[str], tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sample and the samples as a whole, the three steps that count are judged."""
    calls = itertools.count()

    def told(*_: Any) -> Any:
        return _told(10**9, ["waits"] if next(calls) - 2 in noisy else [])

    monkeypatch.setattr(disturbance, "between", told)
    options = {"warmup": 1, "repeats": 1, "steps": 3}
    with capture(tiny, out=tmp_path / "run", **options) as c, torch.inference_mode():
        for _ in range(6):
            with c.step():
                tiny(IDS, logits_to_keep=1)
    (placement,) = read_run(tmp_path / "run" / "dense").phases["prefill"].placements
    assert (placement.disturbed, placement.steps, placement.steps_disturbed) == (0, 3, said)


def _train(model: Any, out: Path, **options: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with capture(model, out=out, **FEW, **options) as c:
        for _ in range(6):
            with c.step():
                optimizer.zero_grad()
                model(input_ids=IDS, labels=IDS).loss.backward()
                optimizer.step()


def test_a_training_step_is_of_phase_training_with_roles_of_both_passes(tmp_path: Path) -> None:
    """MLP channels 64 -> 32: N of up falls, K and M of its gradients; no head is blamed."""
    for name, width, baseline in (("dense", 64, None), ("pruned", 32, tmp_path / "dense")):
        config = LlamaConfig(
            hidden_size=32, intermediate_size=width, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, vocab_size=64,
        )  # fmt: skip
        model = LlamaForCausalLM(config).train()
        _train(model, tmp_path / name, baseline=baseline)
    assert set(read_run(tmp_path / "pruned" / "pruned").phases) == {"training"}
    phase = analyze(tmp_path / "pruned").report.phases["training"]
    assert phase.family is not None and phase.family.id == "static-nk-mlp"
    linears = {"q", "k", "v", "o", "gate", "up", "down", "lm_head"}
    roles = {g.role for g in phase.gemms}
    assert roles >= linears | {f"{role} backward" for role in linears}
    of_up = {(g.axis, g.m, g.n, g.k) for g in phase.gemms if g.role == "up backward"}
    assert of_up == {("M", 32, 32, 24), ("K", 24, 32, 32)}
    assert {"optimizer", "attention backward"} <= {k.role for k in phase.kernels}


class _Image(torch.nn.Module):
    """Two convolutions, a pool and a classifier, as torchvision orders them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
            torch.nn.Conv2d(4, 8, 3), torch.nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.classifier = torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def _bert() -> torch.nn.Module:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        vocab_size=64,
    )  # fmt: skip
    return BertModel(config).eval()


def _mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))


# A module, what it is called with, and the batch and the length that its manifest says.
WITHOUT_CACHE: dict[str, tuple[Callable[[], Any], dict[str, Any] | torch.Tensor, int, int]] = {
    "encoder of ids": (_bert, {"input_ids": IDS}, 2, 12),
    "encoder of vectors": (
        lambda: torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        torch.randn(2, 12, 16), 2, 12,
    ),
    "mlp": (_mlp, torch.randn(6, 16), 6, 1),
    "images": (_Image, torch.randn(5, 3, 8, 8), 5, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_CACHE)
def test_any_module_is_captured_in_the_users_own_loop(name: str, tmp_path: Path) -> None:
    build, given, batch, length = WITHOUT_CACHE[name]
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with capture(model, out=tmp_path / "run", **FEW) as c:
        for _ in range(6):
            with c.step(), torch.inference_mode(mode=not model.training):
                model(**given) if isinstance(given, dict) else model(given)
    run = read_run(tmp_path / "run" / "dense")
    assert list(run.phases) == ["forward"]  # there is no cache to fill or to read
    phase = run.phases["forward"]
    assert (phase.batch, phase.prompt_len, phase.tokens_per_step) == (batch, length, batch * length)
    assert (phase.positions, phase.cache) == ([0, length], "none")
    assert run.model.architecture == type(model).__name__
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [module.training for module in model.modules()] == modes
    if name != "images":  # a batch norm counts what it saw in the user's own loop
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    found = analyze(tmp_path / "run").report.phases["forward"]
    assert found.wall_ns == found.busy_ns + found.gap_ns + found.tail_ns
    assert found.coverage["kind"] > 0.5


def test_a_pruned_module_without_a_cache_is_paired_with_its_dense_one(tmp_path: Path) -> None:
    """The hidden width falls from 32 to 16: N of the first linear, K of the second."""
    for out, width, baseline in (("a", 32, None), ("b", 16, tmp_path / "a")):
        model = torch.nn.Sequential(torch.nn.Linear(16, width), torch.nn.Linear(width, 4))
        with capture(model, out=tmp_path / out, baseline=baseline, **FEW) as c:
            for _ in range(6):
                with c.step(), torch.inference_mode():
                    model(torch.randn(6, 16))
    rows = analyze(tmp_path / "b").report.phases["forward"].gemms
    # The table is ordered by time, which two small GEMMs share as they like.
    assert {(row.axis, row.dense_n, row.n, row.dense_k, row.k) for row in rows} == {
        ("N", 32, 16, 16, 16),
        ("K", 4, 4, 32, 16),
    }
    assert {row.role for row in rows} == {"unknown"}  # without layers nothing is a head


def test_a_compiled_model_has_the_phase_of_its_eager_baseline(tiny: Any, tmp_path: Path) -> None:
    loop(torch.compile(tiny, backend="eager"), 6, out=tmp_path / "run")
    phase = read_run(tmp_path / "run" / "dense").phases["prefill"]
    assert (phase.logits, phase.cache) == ("last", "dynamic")


def test_a_loop_of_decode_steps_is_decode(tiny: Any, tmp_path: Path) -> None:
    cache = compat.new_cache(tiny)
    with capture(tiny, out=tmp_path / "run", **FEW) as c, torch.inference_mode():
        compat.forward(tiny, IDS, cache=cache, logits="last")
        for _ in range(6):
            with c.step():
                compat.forward(tiny, IDS[:, :1], cache=cache, logits="last")
    assert list(read_run(tmp_path / "run" / "dense").phases) == ["decode"]


@pytest.mark.four_layers
def test_a_model_inside_a_wrapper_of_peft_is_captured_as_itself(
    quick: Callable[..., Path], tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forward takes no argument by name; both doors see the model inside."""
    (tmp_path / "adapted.py").write_text(
        "from peft import LoraConfig, get_peft_model\n"
        "def left_on(model, sparsity):\n"
        "    return get_peft_model(model, LoraConfig(r=4, target_modules=['q_proj', 'up_proj']))\n"
    )
    monkeypatch.chdir(tmp_path)
    out = quick(method="adapted:left_on", sparsity=0.5, phase="prefill", out=tmp_path / "run")
    phase = analyze(out).report.phases["prefill"]
    (one,) = [f for f in phase.findings if f.id == "added-adapter"]
    assert "16 low-rank GEMMs, rank 4" in one.text  # A and B of two linears in 4 layers
    assert "q_proj × 4, up_proj × 4" in one.evidence[0]
    assert phase.family is not None and phase.family.id == "outside"
    from adapted import left_on  # type: ignore[import-not-found]

    loop(left_on(tiny, 0.5), 6, out=tmp_path / "own")
    run = read_run(tmp_path / "own" / "dense")
    assert (run.phases["prefill"].logits, run.phases["prefill"].cache) == ("last", "dynamic")
    assert run.model.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("model", "phase", "problem"),
    [
        (_mlp(), "../elsewhere", "not a valid phase name"),
        (torch.nn.ReLU(), None, "has no parameters"),
    ],
)
def test_what_cannot_be_captured_is_told_before_the_loop(
    model: torch.nn.Module, phase: str | None, problem: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(PrunescopeError, match=problem),
        capture(model, out=tmp_path / "run", phase=phase),
    ):
        pytest.fail("the loop ran")
    assert list(tmp_path.iterdir()) == []


def test_a_second_loop_against_the_first(tiny: Any, tmp_path: Path) -> None:
    loop(tiny, 6, out=tmp_path / "a")
    loop(tiny, 6, out=tmp_path / "b", baseline=tmp_path / "a", phase="prefill")
    run = read_run(tmp_path / "b" / "pruned")
    assert run.twin is not None
    assert run.twin.path == "../../a/dense/run.json"


def test_too_few_steps_write_nothing(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match="ran 5 steps, and 6 are needed"):
        loop(tiny, 5, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_step_inside_of_a_step_is_said_to_be(tiny: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(PrunescopeError, match="inside another"),
        capture(tiny, out=tmp_path / "run", **FEW) as c,
        c.step(),
        c.step(),
    ):
        tiny(IDS)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_in_the_loop_writes_nothing(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), capture(tiny, out=tmp_path / "run", **FEW) as c:
        for i in range(6):
            with c.step():
                tiny(IDS)
                _ = 1 / (4 - i)
    assert list(tmp_path.iterdir()) == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.modules())


def test_a_method_of_ones_own(
    quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in the working directory; our packages of the same names are not hidden by it."""
    (tmp_path / "mymethods.py").write_text(
        "from prunescope.taxonomy.keep import kept_hidden\n"
        "def zero(model, sparsity):\n"
        "    for layer in model.model.layers:\n"
        "        rows = int(352 * sparsity)\n"
        "        layer.mlp.up_proj.weight.data[:rows] = 0\n"
        "    return model\n"
        "def clear_failure(model, sparsity):\n"
        "    pass\n"
    )
    (tmp_path / "taxonomy.py").write_text("raise SystemExit('ours is hidden')")
    monkeypatch.chdir(tmp_path)
    out = quick(method="mymethods:zero", sparsity=0.5, phase="prefill", out=tmp_path / "run")
    run = read_run(out / "pruned")
    assert run.pruning is not None
    assert run.pruning.method == "mymethods:zero"
    assert run.census is not None
    rows = {row.name: row for row in run.census.matrices}
    assert rows["model.layers.1.mlp.up_proj"].zero_rows == 0.5
    assert rows["model.layers.1.mlp.down_proj"].zeros == 0
    with pytest.raises(PrunescopeError, match="returned NoneType"):
        quick(method="mymethods:clear_failure", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("placements", [0, -3])
def test_no_placements_are_none(placements: int, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(PrunescopeError, match=f"placements {placements} is too small"):
        loop(tiny, 9, out=tmp_path / "run", placements=placements)
    assert not (tmp_path / "run").exists()


def test_a_function_is_no_name_of_a_method() -> None:
    with pytest.raises(PrunescopeError, match="--method is .*of type function") as raised:
        prunescope.trace("tiny-llama", method=loop)  # type: ignore[arg-type]
    assert "prunescope.capture" in (raised.value.hint or "")


def test_tokens_of_experts_are_counted_as_in_a_trace(tmp_path: Path) -> None:
    """A mixture of 16 experts, top-4: in the step that is thrown away 2 x 12 tokens of a layer go
    to four each. Nothing stays hooked. A step with calls of several sizes has no mean of them."""
    model = mixture("qwen3_moe")
    loop(model, 8, out=tmp_path / "one")
    run = read_run(tmp_path / "one" / "dense")
    assert run.routing.keys() == {"prefill"}
    assert [sum(counts) for counts in run.routing["prefill"].values()] == [2 * 12 * 4] * 2
    assert all(4 <= mean <= 16 for mean in run.distinct_experts["prefill"].values())
    assert not any(module._forward_hooks for module in model.modules())
    with capture(model, **FEW, out=tmp_path / "two") as c, torch.inference_mode():
        for _ in range(8):
            with c.step():
                cache = model(IDS).past_key_values
                model(IDS[:, :1], past_key_values=cache)
    run = read_run(tmp_path / "two" / "dense")
    assert [sum(counts) for counts in run.routing["mixed"].values()] == [2 * 13 * 4] * 2
    assert run.distinct_experts == {}
