"""Pairs that are no pruning: `outside`, or the extension they are, and never a family."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import FamilyVerdict, Phase
from tests.small_capture import saved_model, small_trace

pytestmark = pytest.mark.torch
METHODS = """
import torch

def int8(model, sparsity):
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

def compiled(model, sparsity):
    return with_compiled_mlp(model, "eager")

def inductor(model, sparsity):
    return with_compiled_mlp(model, "inductor")

def with_compiled_mlp(model, backend):
    model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp, backend=backend)
    return model

def half(model, sparsity):
    return model.to(torch.bfloat16)

class Rounded(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.scale = torch.nn.Parameter(scale, requires_grad=False)
        self.register_buffer("codes", (linear.weight / scale).round().to(torch.int8))

    def forward(self, x):
        return torch.nn.functional.linear(x, self.codes.to(x.dtype) * self.scale)

def relu(model, sparsity):
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
    return model

def weight_only(model, sparsity):
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            model.set_submodule(name, Rounded(module))
    return model
"""

trace = partial(small_trace, warmup=1)


def phases_of(subject: Path, baseline: Path | None = None) -> dict[str, Phase]:
    return analyze(subject, baseline=baseline).report.phases


def families(phases: dict[str, Phase]) -> dict[str, FamilyVerdict]:
    return {name: phase.family for name, phase in phases.items() if phase.family is not None}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trace(tmp_path_factory.mktemp("plain") / "run") / "dense"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name, says",
    [
        ("int8", "the GEMMs run in int8, the dense ones in"),
        ("weight_only", "the weights are stored in int8 and copied to fp32 before their GEMMs"),
        ("half", "the GEMMs run in bf16"),
        ("relu", "the activation op differs: aten::clamp_min, aten::relu instead of aten::silu"),
        ("compiled", "compiled code"),
        # Its kernels are C++ that a compiler makes, in ten times the time.
        pytest.param("inductor", "compiled code", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_is_quantised_or_compiled(
    name: str, says: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if name == "int8" and not torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no quantised kernels")
    if name == "inductor" and shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    module = f"methods_{name}"
    (tmp_path / f"{module}.py").write_text(METHODS)
    monkeypatch.chdir(tmp_path)
    run = trace(tmp_path / "run", method=f"{module}:{name}", phase="prefill", baseline=plain)
    phases = phases_of(run)
    named_families = families(phases)
    if name in ("int8", "weight_only"):
        removed = phases["prefill"].sparsity
        shares = {key: share for key, share in removed.items() if key != "nominal"}
        assert [key for key, share in shares.items() if share is None] == ["parameters"]
        assert shares["flop"] == 0
    assert {f.id for f in named_families.values()} == {"outside"}
    for family in named_families.values():
        assert any(says in line for line in family.evidence), family.evidence


@pytest.mark.parametrize(
    "options, says",
    [
        ({"attn": "eager", "phase": "prefill"}, "attention runs as"),
        ({"batch": 2, "phase": "decode"}, "batch"),
        ({"prompt_len": 16}, "prompt_len"),
        ({"decode_steps": 8, "phase": "decode"}, "context"),
    ],
)
def test_other_conditions_both_ways(
    options: dict[str, Any], says: str, plain: Path, tmp_path: Path
) -> None:
    other = trace(tmp_path / "other", **options) / "dense"
    for pair in ((other, plain), (plain, other)):
        named_families = families(phases_of(*pair))
        assert {f.id for f in named_families.values()} == {"outside"}
        assert all(says in family.evidence[0] for family in named_families.values()), named_families


def test_the_same_model_twice_is_dense(plain: Path, tmp_path: Path) -> None:
    again = trace(tmp_path / "again", seed=1) / "dense"
    assert {f.id for f in families(phases_of(again, plain)).values()} == {"dense"}


MOE = {
    "model_type": "mixtral", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 512,
    "pad_token_id": None, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def mixtral(at: Path, **fields: Any) -> str:
    return str(saved_model(at, **{**MOE, **fields}))


@pytest.mark.parametrize(
    "fields, wanted, says",
    [
        ({"num_local_experts": 4}, "static-experts", ["in 2 of 2 layers: N of the router 8 → 4"]),
        ({"num_experts_per_tok": 1}, "static-topk", ["rows of their GEMMs a token 2 → 1"]),
        (
            {"num_local_experts": 4, "num_experts_per_tok": 1},
            "static-experts+static-topk",
            ["N of the router 8 → 4"],
        ),
        ({"intermediate_size": 48}, "static-nk-mlp", ["fewer MLP channels"]),
        ({"num_hidden_layers": 1}, "static-m", ["1 of 2 layers removed"]),
        ({"seed": 1}, "dense", ["no GEMM changed shape"]),  # other weights: other routes
    ],
)
def test_experts(fields: dict[str, Any], wanted: str, says: list[str], tmp_path: Path) -> None:
    dense, pruned = mixtral(tmp_path / "dense"), mixtral(tmp_path / "pruned", **fields)
    run = trace(tmp_path / "run", model=pruned, baseline_model=dense)
    phases = phases_of(run)
    removed = phases["prefill"].sparsity
    assert None not in (removed["parameters"], removed["flop"])
    for family in families(phases).values():
        assert family.id == wanted
        assert all(text in family.evidence[0] for text in says)


GEMMA = {
    "model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
    "vocab_size": 512, "sliding_window": 16, "layer_types": ["sliding_attention"] * 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"sliding_window": 8}, "the attention window differs: 8 tokens in the pruned run, 16"),
        ({"sliding_window": 99}, "99 tokens in the pruned run"),
        ({"model_type": "llama"}, "the model is of type llama, the dense one of type gemma3_text"),
    ],
)
def test_other_models_are_not_comparable(fields: Any, says: str, tmp_path: Path) -> None:
    if fields.get("model_type") == "llama":
        fields = {**fields, "sliding_window": None, "layer_types": None}
    dense = saved_model(tmp_path / "dense", **GEMMA)
    pruned = saved_model(tmp_path / "pruned", **{**GEMMA, **fields})
    run = trace(tmp_path / "run", model=str(pruned), baseline_model=str(dense), phase="prefill")
    for family in families(phases_of(run)).values():
        assert family.id == "outside"
        assert family.evidence[0].startswith("not comparable: ")
        assert says in family.evidence[0]


def test_a_layer_that_is_gone_takes_its_window_along(tmp_path: Path) -> None:
    mixed = {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}
    full = {**GEMMA, "layer_types": ["full_attention"], "num_hidden_layers": 1}
    dense, pruned = (saved_model(tmp_path / n, **m) for n, m in (("d", mixed), ("p", full)))
    run = trace(tmp_path / "run", model=str(pruned), baseline_model=str(dense), phase="prefill")
    assert {f.id for f in families(phases_of(run)).values()} == {"static-m"}


def test_windows_that_hold_every_token_are_alike(tmp_path: Path) -> None:
    dense, pruned = (
        str(saved_model(tmp_path / str(w), **{**GEMMA, "sliding_window": w})) for w in (64, 99)
    )
    run = trace(tmp_path / "run", model=pruned, baseline_model=dense, phase="prefill")
    assert {f.id for f in families(phases_of(run)).values()} == {"dense"}


@pytest.mark.parametrize("turned", [False, True])
def test_two_models_do_not_compare(
    real_trace: Callable[[str], Path],
    *,
    turned: bool,
) -> None:
    """A ViT of 768 and 3072 against a Qwen of 1024 and 2816: one grows, the other falls."""
    names = ["h100_vit.json.gz", "h100_qwen1.5-0.5b_prefill.json.gz"]
    subject, baseline = (real_trace(name) for name in (names[::-1] if turned else names))
    phase = analyze(subject, baseline=baseline).report.phases["trace"]
    assert phase.family is not None and phase.family.id == "outside"
    assert "two models" in phase.family.evidence[0]
    ids = {finding.id for finding in phase.findings}
    assert "not-comparable" in ids and not ids & {"added-work", "coverage-limited"}
    assert phase.ladder is not None and phase.ladder.flop is phase.ladder.coverage is None
