"""Any part of a model that is removed is named or unknown, in traces that hold no module.

Ten architectures as sequences of their products. A part of each is removed at random (layers,
sublayers, heads, channels), and the truth is the part that was drawn. A seed names each pair.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.chrome import chrome, k, op, save, step

BATCH, TOKENS, HEAD = 2, 64, 32
SDPA = "aten::_scaled_dot_product_flash_attention"


@dataclass(frozen=True)
class Layer:
    """The parts of a layer: heads and channels, 0 for a sublayer that is left out."""

    heads: int
    keys: int
    channels: int
    kind: str = "plain"


@dataclass(frozen=True)
class Model:
    """A stack of layers around one residual width.

    Attributes:
        width: The residual width.
        layers: The layers, in order.
        style: How a layer multiplies: names of `STYLES`.
        head: N of the last product; 0 without one.
        images: Whether it begins with a convolution of patches.
    """

    width: int
    layers: tuple[Layer, ...]
    style: str
    head: int = 4096
    images: bool = False


def mm(n: int, inner: int, m: int = BATCH * TOKENS) -> Any:
    us = max(2.0, n * inner / 4000)
    return op("aten::addmm", [n], [m, inner], [inner, n], kernels=[k(us=us, name="gemm_kernel")])


def norm(width: int) -> Any:
    return op("aten::native_layer_norm", [BATCH, TOKENS, width], kernels=[k(us=3, name="norm")])


def attention(heads: int, keys: int = TOKENS) -> Any:
    q, kv = [BATCH, heads, TOKENS, HEAD], [BATCH, heads, keys, HEAD]
    return op(SDPA, q, kv, kv, kernels=[k(us=4.0 * heads, name="flash_fwd_kernel")])


def eager(heads: int, keys: int = TOKENS) -> list[Any]:
    b, bmm = BATCH * heads, [k(us=2.0 * heads, name="bmm")]
    return [
        op("aten::bmm", [b, TOKENS, HEAD], [b, HEAD, keys], kernels=bmm),
        op("aten::_softmax", [BATCH, heads, TOKENS, keys], kernels=[k(us=2, name="softmax")]),
        op("aten::bmm", [b, TOKENS, keys], [b, keys, HEAD], kernels=bmm),
    ]


def attend(layer: Layer, width: int, style: str, keys: int = TOKENS) -> list[Any]:
    """The projections and the attention of a sublayer."""
    if not layer.heads:
        return []
    inner = layer.heads * HEAD
    if style in ("gpt", "vit"):
        into = [mm(3 * inner, width)]
    else:
        into = [mm(inner, width), mm(layer.keys * HEAD, width), mm(layer.keys * HEAD, width)]
    mix = eager(layer.heads, keys) if style in ("bert", "t5") else [attention(layer.heads, keys)]
    return [norm(width), *into, *mix, mm(width, inner)]


def feed(layer: Layer, width: int, style: str) -> list[Any]:
    if not layer.channels:
        return []
    into = [mm(layer.channels, width)] * (2 if style == "llama" else 1)
    if style == "fused":
        into = [mm(2 * layer.channels, width)]
    return [norm(width), *into, mm(width, layer.channels)]


def trace_of(model: Model) -> dict[str, Any]:
    items: list[Any] = []
    if model.images:
        conv = op("aten::cudnn_convolution", [BATCH, 3, 128, 128], [model.width, 3, 16, 16], [],
                  kernels=[k(us=20, name="conv_kernel")])  # fmt: skip
        items.append(conv)
    for layer in model.layers:
        items += attend(layer, model.width, model.style)
        if layer.kind == "decoder" and layer.heads:
            items += attend(layer, model.width, model.style, keys=96)
        items += feed(layer, model.width, model.style)
    if model.head:
        items += [norm(model.width), mm(model.head, model.width)]
    return chrome(*(step(i, *items) for i in range(2)))


def stack(count: int, heads: int, channels: int, keys: int = 0, kind: str = "plain") -> Any:
    return (Layer(heads, keys or heads, channels, kind),) * count


MODELS = {
    "llama": Model(256, stack(6, 8, 704), "llama"),
    "grouped queries": Model(256, stack(6, 8, 640, keys=2), "llama"),
    "fused gate": Model(256, stack(5, 8, 512), "fused"),
    "gpt": Model(256, stack(6, 8, 1024), "gpt"),
    "bert": Model(256, stack(5, 8, 1024), "bert", head=0),
    "opt": Model(320, stack(6, 10, 1280), "opt"),
    "vit": Model(192, stack(6, 6, 768), "vit", head=1000, images=True),
    "t5": Model(256, stack(4, 8, 960) + stack(4, 8, 960, kind="decoder"), "t5"),
    "whisper": Model(256, stack(4, 8, 1024) + stack(4, 8, 1024, kind="decoder"), "opt"),
    "no head": Model(384, stack(8, 12, 1536), "opt", head=0),
}


def remove_layers(model: Model, draw: random.Random) -> Model:
    kept = sorted(draw.sample(range(len(model.layers)), draw.randint(2, len(model.layers) - 1)))
    return replace(model, layers=tuple(model.layers[i] for i in kept))


def change(model: Model, draw: random.Random, make: Callable[[Layer], Layer]) -> Model:
    """Change a part of the layers, or all."""
    count = draw.choice([len(model.layers), draw.randint(1, len(model.layers))])
    chosen = {*draw.sample(range(len(model.layers)), count)}
    layers = (make(layer) if i in chosen else layer for i, layer in enumerate(model.layers))
    return replace(model, layers=tuple(layers))


def remove_sublayers(model: Model, draw: random.Random) -> Model:
    part = draw.choice(["heads", "channels"])
    count = draw.randint(1, len(model.layers) // 2)
    chosen = {*draw.sample(range(len(model.layers)), count)}
    layers = [replace(x, **{part: 0}) if i in chosen else x for i, x in enumerate(model.layers)]
    return replace(model, layers=tuple(layers))


def remove_heads(model: Model, draw: random.Random) -> Model:
    share = draw.choice([0.3, 0.5])

    def narrow(layer: Layer) -> Layer:
        groups = layer.heads // layer.keys
        keys = max(1, int(layer.keys * (1 - share)))
        return replace(layer, heads=keys * groups, keys=keys)

    return change(model, draw, narrow)


def remove_channels(model: Model, draw: random.Random) -> Model:
    share = draw.choice([0.125, 0.25, 0.5, 0.75])
    return change(model, draw, lambda x: replace(x, channels=int(x.channels * (1 - share))))


EDITS = {
    "static-m": [remove_layers, remove_sublayers],
    "static-nk-heads": [remove_heads],
    "static-nk-mlp": [remove_channels],
}


def compare(seed: int, folder: Path) -> tuple[str, str, Phase]:
    """Return what was done to which model, the family that it is, and the phase of the report."""
    draw = random.Random(seed)
    name = draw.choice([*MODELS])
    truth = draw.choice([*EDITS])
    edit = draw.choice(EDITS[truth])
    pruned = edit(MODELS[name], draw)
    paths = [
        save(trace_of(model), folder / f"{side}.json")
        for side, model in (("dense", MODELS[name]), ("pruned", pruned))
    ]
    (phase,) = analyze(paths[1], baseline=paths[0]).report.phases.values()
    return f"seed {seed}: {edit.__name__} of {name}", truth, phase


def check(seed: int, folder: Path) -> None:
    what, truth, phase = compare(seed, folder)
    assert phase.family is not None
    assert phase.family.id in (truth, "unknown"), (what, phase.family)
    added = next(row.ns for row in phase.ledger or [] if row.row == "added_work")
    assert not added, (what, added, phase.family)


@pytest.mark.parametrize("seed", range(20))
def test_what_was_removed_is_named_or_unknown(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 200))
def test_what_was_removed_is_named_or_unknown_in_many_pairs(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


def test_key_heads_that_are_shared_by_more_queries_are_said_as_such(tmp_path: Path) -> None:
    model = MODELS["llama"]
    shared = replace(model, layers=tuple(replace(layer, keys=2) for layer in model.layers))
    paths = [save(trace_of(x), tmp_path / f"{i}.json") for i, x in enumerate((model, shared))]
    (phase,) = analyze(paths[1], baseline=paths[0]).report.phases.values()
    assert phase.family is not None and phase.family.id == "static-nk-heads"
    assert "fewer KV heads 8 → 2, all query heads stay" in phase.family.evidence[0]
