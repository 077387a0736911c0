"""What a pruner makes has the flags of what it stands for: torch chooses kernels by them."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch

from prunescope.taxonomy.families import families
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.pruners import Applied, family_point, pruner
from tests.tracer.tiny_models import tiny_model

pytestmark = pytest.mark.torch

STATIC = [entry.id for entry in families() if entry.cuts and entry.dynamics == "static"]
DYNAMIC = [entry.id for entry in families() if entry.is_dynamic and not entry.predicted_only]
# Those that leave every parameter where it is.
IN_PLACE = {"static-m", "static-k-mask", "static-k-24", "static-topk"}
UNIT = 64  # bytes by which torch aligns what it allocates
# The chance of a parameter to want a gradient: drawn for each, no flag is right by its neighbour's.
WANTED = {"all": 1.0, "none": 0.0, "some": 0.5}
CASES = [("llama", wanted) for wanted in WANTED]
CASES += [(name, "some") for name in ("gpt2", "gpt_oss", "deepseek_v3", "olmo2")]
OF_EXPERTS = {entry.id for entry in families() if entry.changes_experts}
# Models whose experts can go, and those that can send a token to fewer of them: the tiny deepseek
# has no more experts in a group than a token needs.
MIXTURES = {"static-experts": {"gpt_oss"}, "static-topk": {"gpt_oss", "deepseek_v3"}}
STATIC_CASES = [
    (name, wanted, family)
    for family in STATIC
    for name, wanted in CASES
    if family not in OF_EXPERTS or name in MIXTURES[family]
]
Flags = tuple[bool, torch.dtype, bool, bool]


def flags_of(parameter: torch.Tensor) -> Flags:
    """Return (requires a gradient, dtype, contiguous, aligned)."""
    aligned = parameter.data_ptr() % UNIT == 0
    return parameter.requires_grad, parameter.dtype, parameter.is_contiguous(), aligned


def flagged(name: str, dtype: torch.dtype, wanted: str) -> Any:
    """Build a tiny model of a dtype whose parameters require gradients as `wanted` says."""
    model, draw = tiny_model(name).to(dtype), random.Random(0)
    for parameter in model.parameters():
        parameter.requires_grad_(draw.random() < WANTED[wanted])
    return model


def parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """All by name, tied ones by each of theirs."""
    return dict(model.named_parameters(remove_duplicate=False))


def apply(family: str, model: torch.nn.Module, **knobs: str) -> Applied:
    point = family_point(family, Point(sparsity=0.5, knobs=knobs))
    with torch.no_grad():
        return pruner(family).prune(model, point)  # type: ignore[arg-type]


def replaced(name: str, before: dict[str, Flags], applied: Applied) -> str:
    """Return the parameter of the dense model that `name` replaces."""
    if (kept := applied.layer_map) is not None:
        name = re.sub(r"\b(layers|h)\.(\d+)", lambda m: f"{m[1]}.{kept[int(m[2])]}", name)
    name = re.sub(r"\.(first|second)\.(weight|bias)$", r".\2", name)  # of a low-rank pair
    if name in before:
        return name
    if name.endswith(".bias"):  # of a linear that takes over what a norm added
        return name.removesuffix("bias") + "weight"
    assert name.endswith("_residual.weight"), name  # a map of the stream: as its table
    return next(n for n in before if n.endswith(("embed_tokens.weight", "wte.weight")))


@pytest.mark.parametrize(("name", "wanted", "family"), STATIC_CASES)
def test_what_a_static_family_makes_has_the_flags_of_what_it_replaces(
    name: str, wanted: str, family: str
) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        model = flagged(name, dtype, wanted)
        known = parameters(model)
        before = {path: flags_of(parameter) for path, parameter in known.items()}
        applied = apply(family, model)
        old = {id(parameter) for parameter in known.values()}
        after = parameters(applied.model)
        assert any(id(parameter) not in old for parameter in after.values()) != (family in IN_PLACE)
        for path, parameter in after.items():
            gradient, kind, contiguous, aligned = before[replaced(path, before, applied)]
            assert parameter.requires_grad == gradient, path
            assert parameter.dtype == kind == dtype, path
            assert parameter.is_contiguous() == contiguous, path
            assert parameter.data_ptr() % UNIT == 0 or not aligned, path


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("family", DYNAMIC)
def test_a_dynamic_family_keeps_every_parameter_with_its_flags(family: str, wanted: str) -> None:
    """The object itself; what it adds is its routers', of the model's dtype."""
    for name in ("llama", "phi3"):  # phi3 has fused projections
        model = flagged(name, torch.bfloat16, wanted)
        known = parameters(model)
        before = {id(parameter): flags_of(parameter) for parameter in known.values()}
        knobs = {"after": "1"} if family == "token-drop" else {}
        after = parameters(apply(family, model, **knobs).model)
        actual = {id(parameter): flags_of(parameter) for parameter in after.values()}
        assert {key: actual[key] for key in before} == before
        for path, parameter in after.items():
            if id(parameter) not in before:
                assert "router" in path
                assert flags_of(parameter)[1:] == (torch.bfloat16, True, True), path
