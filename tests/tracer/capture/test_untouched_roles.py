"""What a family leaves alone runs as in the dense model: module by module, op by op."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from prunescope.taxonomy.families import family
from prunescope.tracer.capture.variants import Variant
from tests.tracer.plain_loop import AHEAD, BEHIND, CALL, CELLS, Op, by_module, made, our_cells
from tests.tracer.tiny_models import WITHOUT_EXPERTS, tiny_model

pytestmark = pytest.mark.torch

LAYERS, LEFT = 4, 2  # of the model, and of those that half the layers are taken from
NONE = "(?!)"  # matches nothing
PRUNED = WITHOUT_EXPERTS
Modules = dict[str, list[Op]]


@dataclass(frozen=True, kw_only=True)
class Touched:
    """Modules of a Llama in which a family changes ops, by phase, and those that it `adds`:
    patterns of their names. A layer's own ops are its residual adds, those of `self_attn` rotation,
    cache and attention, those of `mlp` gate·up."""

    prefill: str = NONE
    decode: str = NONE
    adds: str = NONE


def always(modules: str, adds: str = NONE) -> Touched:
    """The same in both phases."""
    return Touched(prefill=modules, decode=modules, adds=adds)


BODY, PROJECTIONS, MLP = r"self_attn$", r"_proj$", r"\.mlp(\.|$)"
STREAM = r"layers\.\d+$|layernorm$|_proj$|embed_tokens$|model\.norm$|lm_head$|behind"
ROUTER = r"\.router$"
# Every family. What a pattern does not match must be as it was, and what it matches must not.
TOUCHED: dict[str, Touched] = {
    "static-m": Touched(),
    "static-k-mask": Touched(),
    "static-k-24": Touched(),
    "static-k-lowrank": always(PROJECTIONS, adds=r"_proj\.(first|second)$"),
    "static-nk": always(rf"self_attn|{MLP}"),
    "static-nk-heads": always("self_attn"),
    "static-nk-mlp": always(MLP),
    "static-nk-cross": always(STREAM, adds=r"_residual$"),
    # A cache lacks the tokens for which its layer was skipped.
    "dynamic-depth": Touched(decode=BODY, adds=ROUTER),
    # k and v see every token; the routed sublayers add to the stream themselves.
    "dynamic-m": always(
        rf"layers\.\d+$|{BODY}|[qo]_proj$|{MLP}|post_attention_layernorm$", adds=ROUTER
    ),
    "dynamic-nk": always(BODY, adds=ROUTER),
    "dynamic-width": always(MLP, adds=ROUTER),
    "kv-evict": always(BODY, adds=ROUTER),
    # Tokens leave behind layer 1, whose attention ranks them; a decoded one goes through all.
    "token-drop": Touched(
        prefill=r"layers\.(1\.self_attn$|[23])|model\.norm$|lm_head$|behind",
        decode=r"layers\.[123]\.self_attn$",
        adds=ROUTER,
    ),
}


def test_every_family_has_its_row() -> None:
    assert set(TOUCHED) == set(PRUNED)


@pytest.mark.parametrize("name", PRUNED)
def test_what_a_family_leaves_alone_runs_as_before(
    name: str, llama: Path, dense: dict[tuple[str, str], Modules]
) -> None:
    """A step of each phase and policy: in every module that the family does not touch the same ops
    on the same shapes and strides, in the same order, as often. All families take this model."""
    row = TOUCHED[name]
    variant = made(llama, ("pruned",), method=name, sparsity=0.5)["pruned"]
    assert all(p.requires_grad for p in variant.model.parameters()), "as they were loaded"
    touched, moved = set(), set()
    events = our_cells(variant.model)
    for phase, logits in CELLS:
        pattern = re.compile(getattr(row, phase))
        found = by_module(variant.model, events[phase, logits])
        where = places(name, variant, found)
        assert len(where) == (LEFT if family(name).skips_layers else LAYERS)
        before = renamed(dense[phase, logits], where)
        for module, ops in before.items():
            if pattern.search(module):
                touched.add(kind(module))
                moved |= {kind(module)} if found.get(module) != ops else set()
            else:
                assert found.get(module) == ops, (module, phase, logits)
        for module in found.keys() - before.keys():
            assert re.search(row.adds, module) or found[module] == [CALL], (module, phase, logits)
    assert moved == touched, "the row says more than is so"


def places(name: str, variant: Variant, found: Modules) -> dict[int, int]:
    """Which layer of the dense model runs as which of the pruned one."""
    if variant.layer_map is not None:
        return {old: new for new, old in enumerate(variant.layer_map)}
    skips = family(name).skips_layers
    runs = [i for i in range(LAYERS) if not skips or f"model.layers.{i}.mlp" in found]
    return {i: i for i in runs}


def renamed(dense: Modules, where: dict[int, int]) -> Modules:
    """Modules of the dense model by their names in the pruned one, without layers that are gone."""
    named: Modules = {}
    for module, ops in dense.items():
        number = re.search(r"layers\.(\d+)", module)
        if number is None:
            named[module] = ops
        elif int(number[1]) in where:
            named[module.replace(number[0], f"layers.{where[int(number[1])]}", 1)] = ops
    return named


def kind(module: str) -> str:
    """A module's name without the number of its layer."""
    return re.sub(r"layers\.\d+", "layers", module)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model."""
    folder = tmp_path_factory.mktemp("llama") / "model"
    tiny_model("llama", num_hidden_layers=LAYERS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dense(llama: Path) -> dict[tuple[str, str], Modules]:
    """The ops of the dense baseline by module, in every phase and policy."""
    model = made(llama)["dense"].model
    assert all(p.requires_grad for p in model.parameters()), "as they were loaded"
    return {cell: by_module(model, events) for cell, events in our_cells(model).items()}


def test_ops_go_to_the_module_that_runs_them(dense: dict[tuple[str, str], Modules]) -> None:
    """Else the comparison would hold of nothing."""
    seen = dense["prefill", "last"]
    names = {module: {op for op, _, _ in ops} for module, ops in seen.items()}
    assert "aten::scaled_dot_product_attention" in names["model.layers.3.self_attn"]
    assert "aten::cat" in names["model.layers.0.self_attn"]  # cache and rotation
    assert "aten::linear" in names["model.layers.0.self_attn.q_proj"]
    assert [op for op, _, _ in seen["model.layers.2.mlp"]] == ["call", "aten::mul"]
    assert [op for op, _, _ in seen["model.layers.2"]] == ["call", "aten::add", "aten::add"]
    assert "aten::embedding" in names["model.embed_tokens"]
    assert "aten::arange" in names[AHEAD]
    assert "aten::slice" in names[BEHIND]
