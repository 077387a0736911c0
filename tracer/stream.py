"""The residual stream of a decoder: who reads it, who writes it, and which norms stand between.

In: a model. Out: Stream, with the 2n sublayers in order. A junction is the stream at one point:
junction 0 leaves the embedding, junction j is read by sublayer j, junction 2n by the final norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from taxonomy.errors import PrunescopeError
from taxonomy.roles import locate
from tracer.layers import decoder_layers, linears_by_role
from tracer.matrices import layer_matrices

_READERS = {
    "self_attn": {"q", "k", "v", "qkv", "q_a", "kv_a"},
    "mlp": {"gate", "up", "gate_up"},
}
_WRITER = {"self_attn": "o", "mlp": "down"}
# Children of a layer that have weights -> (norm before, norm after) of attention and of the MLP.
_LAYOUTS: dict[frozenset[str], tuple[tuple[str, str], tuple[str, str]]] = {
    frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}): (
        ("input_layernorm", ""),
        ("post_attention_layernorm", ""),
    ),
    frozenset(
        {
            "input_layernorm", "self_attn", "post_attention_layernorm",
            "pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm",
        }
    ): (
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    frozenset({"self_attn", "post_attention_layernorm", "mlp", "post_feedforward_layernorm"}): (
        ("", "post_attention_layernorm"),
        ("", "post_feedforward_layernorm"),
    ),
}  # fmt: skip


@dataclass(kw_only=True)
class Sublayer:
    """An attention or an MLP: what reads the stream, what writes to it, norms on both sides."""

    layer: str  # qualified name of the layer
    part: str  # "self_attn" | "mlp"
    before: str  # name of the norm that reads the stream; empty where there is none
    after: str  # name of the norm between the writer and the stream; empty where there is none
    readers: list[nn.Linear]
    writer: nn.Linear

    @property
    def entrance(self) -> str:
        """Qualified name of the module that is called with the stream."""
        return f"{self.layer}.{self.before or self.part}"


@dataclass(kw_only=True)
class Stream:
    """A decoder as a chain of sublayers around one stream of width `hidden`."""

    layers: str  # qualified name of the layer list
    sublayers: list[Sublayer]
    embedding: Any
    head: Any
    final_norm: str
    hidden: int

    @property
    def rotatable(self) -> bool:
        """Whether any orthogonal map of the stream can be undone in the weights: a norm's gain
        right before the stream cannot be."""
        return not any(sublayer.after for sublayer in self.sublayers)

    def entrances(self) -> list[str]:
        """The module that is called with each junction, first to last."""
        return [*(sublayer.entrance for sublayer in self.sublayers), self.final_norm]


def read_stream(model: nn.Module) -> Stream:
    """The stream of a model. Raises PrunescopeError that says what is different in this one."""
    name, layers = decoder_layers(model)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    parent = name.rpartition(".")[0]
    final = _final_norm(model.get_submodule(parent), parent, name)
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise _different(model, "its embedding or its head is no plain table")
    sublayers: list[Sublayer] = []
    for index, layer in enumerate(layers):
        sublayers += _sublayers(model, layer, f"{name}.{index}")
    stream = Stream(
        layers=name,
        sublayers=sublayers,
        embedding=embedding,
        head=head,
        final_norm=final,
        hidden=embedding.embedding_dim,
    )
    _check_widths(model, stream)
    return stream


def gain_and_offset(norm: nn.Module, hidden: int) -> tuple[torch.Tensor, float]:
    """(gain g [h] in float32, offset) of an RMS norm y = g·x/rms(x) with g = offset + weight.

    Read from what the norm does: Gemma's weights are offsets from 1. Raises PrunescopeError where
    it is another norm.
    """
    weight: Any = getattr(norm, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.shape != (hidden,):
        raise _no_rms(norm)
    stored = weight.detach().float()
    # Not of mean 0, so that a norm that subtracts the mean is seen.
    probe = torch.linspace(-1, 3, hidden, device=weight.device).to(weight.dtype)
    with torch.no_grad():
        seen = norm(probe.view(1, 1, -1)).view(-1).float()
    unit = probe.float() * probe.float().square().mean().rsqrt()
    for offset in (0.0, 1.0):
        if torch.allclose(seen, (stored + offset) * unit, rtol=0.02, atol=0.02):
            return stored + offset, offset
    raise _no_rms(norm)


def _sublayers(model: nn.Module, layer: nn.Module, path: str) -> list[Sublayer]:
    children = {
        name for name, child in layer.named_children() if next(child.parameters(), None) is not None
    }
    layout = _LAYOUTS.get(frozenset(children))
    own = next(layer.parameters(recurse=False), None)
    if layout is None or own is not None:
        raise _different(model, f"its layers hold {', '.join(sorted(children))}")
    linears = linears_by_role(layer, path)
    found = []
    for part, (before, after) in zip(("self_attn", "mlp"), layout, strict=True):
        readers = [linear for role, linear in linears.items() if role in _READERS[part]]
        writer = linears.get(_WRITER[part])
        if not readers or writer is None:
            raise _different(model, f"{path}.{part} has no linears that read and write the stream")
        found.append(
            Sublayer(
                layer=path, part=part, before=before, after=after, readers=readers, writer=writer
            )
        )
    return found


def _final_norm(parent: nn.Module, path: str, layers: str) -> str:
    """The one module beside the layers and the embedding that has weights."""
    names = [
        f"{path}.{name}" if path else name
        for name, child in parent.named_children()
        if next(child.parameters(), None) is not None
    ]
    others = [n for n in names if n != layers and locate(n).role != "embedding"]
    if len(others) == 1 and locate(others[0]).role == "final_norm":
        return others[0]
    raise _different(parent, f"beside the layers it holds {', '.join(others) or 'no norm'}")


def _check_widths(model: nn.Module, stream: Stream) -> None:
    """Every matrix of a layer is one that was found, and the stream has one width."""
    known = {id(linear) for s in stream.sublayers for linear in (*s.readers, s.writer)}
    readers = {r.in_features for s in stream.sublayers for r in s.readers}
    writers = {s.writer.out_features for s in stream.sublayers}
    if readers | writers | {stream.head.in_features} != {stream.hidden}:
        raise _different(model, "its embedding, its layers and its head differ in width")
    for path, module in layer_matrices(model).items():
        if id(module) not in known and locate(path).role not in ("q_b", "kv_b"):
            raise _different(model, f"{path} is a second matrix of its kind in one layer")


def _different(model: nn.Module, what: str) -> PrunescopeError:
    return PrunescopeError(
        f"the residual stream of {type(model).__name__} cannot be narrowed: {what}",
        hint="static-nk-cross knows decoders of RMS norms, one attention and one plain MLP a "
        "layer, as Llama, Mistral, Qwen and Gemma have them",
    )


def _no_rms(norm: nn.Module) -> PrunescopeError:
    return PrunescopeError(
        f"{type(norm).__name__} is no RMS norm of the residual stream",
        hint="a norm that subtracts the mean or has a bias does not commute with a narrower stream",
    )
