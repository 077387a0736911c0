"""Several families at once, and folders that other tools have pruned: named from traces alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import FamilyVerdict, Phase
from tests.small_capture import saved_model, traced_together

pytestmark = pytest.mark.torch

SMALL = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "head_dim": 16, "num_key_value_heads": 4, "intermediate_size": 96, "vocab_size": 512,
    "pad_token_id": None,
}  # fmt: skip


def traced(tmp_path: Path, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Phase]]:
    """The phases of reports that know nothing of the pruning, by name of the pruned model."""
    runs = traced_together(tmp_path, options, recorded=False)
    return {name: analyze(run).report.phases for name, run in runs.items()}


def assert_parts(family: FamilyVerdict | None, wanted: set[str], where: object) -> None:
    """The families, each once; shares that are whole; signs that agree."""
    assert family is not None, where
    assert set(family.id.split("+")) == wanted, (where, family)
    assert [part["id"] for part in family.parts] == family.id.split("+")
    assert sum(part["share"] for part in family.parts) == pytest.approx(1)
    assert all(0 < part["share"] <= 1 for part in family.parts)
    assert sum(abs(part["saved_share"]) for part in family.parts) == pytest.approx(1)
    for part in family.parts:
        assert part["saved_ns"] * part["saved_share"] >= 0
    order = [part["share"] for part in family.parts]
    assert order == sorted(order, reverse=True)


COMPOSITES: dict[str, dict[str, str]] = {
    "static-m:0.25+static-nk-mlp:0.5": {},
    "static-m:0.25+static-nk:0.5+static-nk-cross:0.25": {"static-nk-cross.junctions": "same"},
    "static-nk:0.5+static-nk-cross:0.25": {},
    "static-m:0.25+static-k-lowrank:0.5": {},
    "static-nk-mlp:0.5+static-k-mask:0.5": {},
    "static-m:0.25+dynamic-nk:0.5": {},
    "static-m:0.25+dynamic-m:0.5": {"static-m.layers": "0,3"},
}
EVICTED = "static-nk:0.5+kv-evict:0.5"


@pytest.mark.four_layers  # a quarter of the layers
def test_composites_are_named(tmp_path: Path) -> None:
    """And heads that are gone are not keys that were evicted: those are told in decode."""
    asked = {name: {"method": name, "knobs": knobs} for name, knobs in COMPOSITES.items()}
    found = traced(tmp_path, {**asked, EVICTED: {"method": EVICTED}})
    for name in COMPOSITES:
        wanted = {part.partition(":")[0] for part in name.split("+")}
        for where, phase in found[name].items():
            assert_parts(phase.family, wanted, (name, where))
    evicted = found[EVICTED]["decode"].family
    assert_parts(evicted, {"static-nk", "kv-evict"}, EVICTED)
    assert evicted is not None
    assert any("the cache holds" in line for line in evicted.evidence)


def folder(at: Path, **fields: Any) -> Path:
    return saved_model(at, **{**SMALL, **fields})


def cut(state: dict[str, Any], layers: dict[int, tuple[int, int]], *, bias: bool) -> dict[str, Any]:
    """The state of a Llama with (heads, channels) left in some layers, as LLM-Pruner leaves it;
    with biases for what is gone, as FLAP does."""
    import torch

    out = dict(state)
    for index, (heads, channels) in layers.items():
        for role in ("q", "k", "v", "o", "gate", "up", "down"):
            part = "self_attn" if role in "qkvo" else "mlp"
            name = f"model.layers.{index}.{part}.{role}_proj.weight"
            rows = heads * 16 if part == "self_attn" else channels
            weight = state[name]
            out[name] = (weight[:, :rows] if role in ("o", "down") else weight[:rows]).contiguous()
            if bias and role in ("o", "down"):
                out[name.replace("weight", "bias")] = torch.full((64,), 0.1)
    return out


def uneven(dense: Path, at: Path, layers: dict[int, tuple[int, int]], *, bias: bool) -> Path:
    from safetensors.torch import load_file, save_file

    at.mkdir()
    (at / "config.json").write_bytes((dense / "config.json").read_bytes())
    state = cut(load_file(dense / "model.safetensors"), layers, bias=bias)
    save_file(state, at / "model.safetensors", metadata={"format": "pt"})
    return at


# By the tool that leaves such a folder: fields of the config, and what the verdict must name.
FOLDERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "ShortGPT": ({"num_hidden_layers": 3}, {"static-m"}),
    "SliceGPT": ({"hidden_size": 48}, {"static-nk-cross"}),
    "Minitron": (
        {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 64},
        {"static-m", "static-nk-cross", "static-nk-mlp"},
    ),
    "Sheared-LLaMA": (
        {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 64,
         "num_attention_heads": 2, "num_key_value_heads": 2},
        {"static-m", "static-nk-cross", "static-nk"},
    ),
    "width of Minitron": (
        {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 2,
         "num_key_value_heads": 2},
        {"static-nk-cross", "static-nk"},
    ),
}  # fmt: skip


# Layers of different widths, (heads, channels) by layer; whether biases stand for what is gone.
UNEVEN: dict[str, tuple[dict[int, tuple[int, int]], bool, str]] = {
    "LLM-Pruner": ({1: (2, 48), 2: (3, 80)}, False, "static-nk"),  # some layers, all parts
    "FLAP": ({i: (4 - i % 2, 64 + 16 * (i % 2)) for i in range(4)}, True, "static-nk"),
    "MLPs alone": ({0: (4, 32), 3: (4, 64)}, False, "static-nk-mlp"),
}
# A folder gives one model in every phase: both phases are traced for one of the tools.
IN_DECODE = ("SliceGPT", "Minitron", "FLAP")


def test_folders_pruned_by_other_tools(tmp_path: Path) -> None:
    dense = folder(tmp_path / "dense")
    wanted = {name: names for name, (_, names) in FOLDERS.items()}
    folders = {name: folder(tmp_path / name, **fields) for name, (fields, _) in FOLDERS.items()}
    for name, (layers, bias, family) in UNEVEN.items():
        wanted[name] = {family}
        folders[name] = uneven(dense, tmp_path / name, layers, bias=bias)
    for phase, names in (
        ("prefill", [name for name in folders if name not in IN_DECODE or name == "Minitron"]),
        ("decode", IN_DECODE),
    ):
        same = {"baseline_model": str(dense), "phase": phase}
        asked = {name: {"model": str(folders[name]), **same} for name in names}
        for name, found in traced(tmp_path / phase, asked).items():
            assert_parts(found[phase].family, wanted[name], (name, phase))


def test_a_folder_of_uneven_layers_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    """Cut matrices give what zeros in their place give; FLAP's biases are added."""
    import torch

    from prunescope.taxonomy.errors import PrunescopeError
    from prunescope.tracer.model.load import load_model

    def load(at: Path) -> Any:
        return load_model(str(at), dtype="auto", device=torch.device("cpu"), attn="sdpa")

    dense, ids = folder(tmp_path / "dense"), torch.arange(12).unsqueeze(0)
    layers = {0: (3, 80), 2: (1, 16)}  # 64·(4·48 + 3·80) + 64·(4·16 + 3·16) + 4 biases of 64
    found = load(uneven(dense, tmp_path / "pruned", layers, bias=True))
    assert found.notes == [
        "the weights differ from their config, and count: 1–4 query heads (config: 4), 1–4 KV "
        "heads (config: 4), 16–96 MLP channels (config: 96)",
        "2 layers differ in width (18 tensors, 35072 numbers)",
    ]
    masked = load(dense).model
    for index, (heads, channels) in layers.items():
        layer = masked.model.layers[index]
        for linear, left in ((layer.self_attn.o_proj, heads * 16), (layer.mlp.down_proj, channels)):
            linear.weight.data[:, left:] = 0
            linear.bias = torch.nn.Parameter(torch.full((64,), 0.1), requires_grad=False)
    torch.testing.assert_close(found.model(ids).logits, masked(ids).logits, rtol=1e-4, atol=1e-5)

    from safetensors.torch import load_file, save_file

    file = tmp_path / "pruned" / "model.safetensors"
    state = load_file(file)
    state["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(40, 64)  # 2.5 heads
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(PrunescopeError, match="parts of heads"):
        load(tmp_path / "pruned")
    state["model.norm.weight"] = torch.zeros(32)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(PrunescopeError, match="other shapes than its config"):
        load(tmp_path / "pruned")
