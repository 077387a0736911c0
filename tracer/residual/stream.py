"""The residual stream of a decoder: its readers and writers, and the norms between them.

In: a model. Out: Stream, a chain of blocks around one stream. A junction is the stream at one
point: junction 0 leaves the embedding, block j reads junction j, and the final norm reads the last.
A block reads one junction and writes to the next. It is an attention or an MLP, or both in
parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.roles import locate
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.narrow import is_norm
from prunescope.tracer.residual.first_calls import (
    FirstCalls,
    Value,
    are_equal,
    source_of,
    watch_layers,
)
from prunescope.tracer.residual.ports import Port, find_ports, reader_of
from prunescope.tracer.residual.sublayers import roots


@dataclass(kw_only=True)
class Sublayer:
    """An attention, another mixer or an MLP, by the qualified names of its modules.

    `chain` are the modules that run one after the other. `before` is the norm that reads the
    stream, and `after` the norm between the last module and the stream; both are "" without such a
    norm.
    """

    kind: str  # "attention" (another mixer too) | "mlp"
    chain: list[str]
    before: str
    after: str
    readers: list[Port]
    writers: list[Port]

    @property
    def entrance(self) -> str:
        """The qualified name of the module that is called with the stream."""
        return self.before or self.chain[0]

    @property
    def modules(self) -> list[str]:
        """The qualified names of the chain and of the norms around it."""
        return [name for name in (self.before, *self.chain, self.after) if name]


@dataclass(kw_only=True)
class ResidualBlock:
    """The sublayers of a layer between two junctions."""

    layer: str  # qualified name
    sublayers: list[Sublayer]

    def norms(self) -> dict[str, list[Port]]:
        """Map each norm that reads the stream to its readers; "" is for readers without a norm."""
        readers: dict[str, list[Port]] = {}
        for sublayer in self.sublayers:
            readers.setdefault(sublayer.before, []).extend(sublayer.readers)
        return readers

    def writers(self) -> list[Port]:
        """List the weights and biases that write to the next junction."""
        return [port for sublayer in self.sublayers for port in sublayer.writers]


@dataclass(kw_only=True)
class Stream:
    """A decoder as a chain of blocks around one stream of width `hidden`."""

    layers: str  # qualified name of the layer list
    blocks: list[ResidualBlock]
    tables: list[Port]  # the tables of tokens and of positions
    table_norm: str  # qualified name of a norm right after the table, or ""
    head: Port
    final_norm: str
    hidden: int
    tuples: set[str]  # layers that return a tuple
    logits: torch.Tensor  # those of `probe` for the unchanged model

    @property
    def is_rotatable(self) -> bool:
        """Whether an orthogonal map of the stream can be folded into the weights.

        It cannot if a norm with a gain writes to the stream.
        """
        return not any(part.after for block in self.blocks for part in block.sublayers)

    @property
    def tied(self) -> Port | None:
        """The table that shares its weight with the head; None if the head has its own."""
        head = self.head.holder.weight
        return next((table for table in self.tables if head is table.holder.weight), None)

    @property
    def device(self) -> torch.device:
        """The device of the embedding."""
        return self.tables[0].holder.weight.device

    def entrances(self) -> list[str]:
        """List the modules that are called with each junction, from the first to the last."""
        return [*(block.sublayers[0].entrance for block in self.blocks), self.final_norm]

    def writers(self) -> list[Port]:
        """List everything after the embedding that writes to the stream."""
        return [port for block in self.blocks for port in block.writers()]

    def norms(self) -> dict[str, list[Port]]:
        """Map each norm that reads the stream to its readers; the head reads the final norm."""
        norms = {name: list(r) for block in self.blocks for name, r in block.norms().items()}
        norms.pop("", None)
        return {**norms, self.final_norm: [self.head]}


def read_stream(model: nn.Module) -> Stream:
    """Read the residual stream of a model.

    Args:
        model: A decoder of transformers.

    Returns:
        Its blocks, tables, norms and head, with the logits of the unchanged model.

    Raises:
        PrunescopeError: The stream is not supported, for the reason that the message gives.
    """
    name, layers = decoder_layers(model)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise unsupported(model, "its embedding or head is not a plain table")
    hidden = embedding.embedding_dim
    tables, table_norm, final = _outer_ports(model, name, hidden)
    if not any(port.holder is embedding for port in tables) or head.in_features != hidden:
        raise unsupported(model, "its embedding, its layers and its head differ in width")
    seen = watch_layers(model)
    blocks: list[ResidualBlock] = []
    for index, layer in enumerate(layers):
        blocks += _blocks(model, layer, f"{name}.{index}", hidden, seen)
    return Stream(
        layers=name,
        blocks=blocks,
        tables=tables,
        table_norm=table_norm,
        head=reader_of(head),
        final_norm=final,
        hidden=hidden,
        tuples={f"{name}.{i}" for i in range(len(layers)) if f"{name}.{i}" in seen.lengths},
        logits=seen.logits,
    )


def _blocks(
    model: Any, layer: nn.Module, path: str, hidden: int, seen: FirstCalls
) -> list[ResidualBlock]:
    """Split a layer into the blocks between its junctions.

    Sublayers that read the same values are one block: they run in parallel.
    """
    kinds = {root: kind for kind, paths in roots(layer, path).items() for root in paths}
    norms = [
        name
        for name, module in layer.named_modules(prefix=path)
        if is_norm(module) and locate(name).scope == "layer" and name in seen.given
    ]
    given = {name: seen.given[name] for name in norms}
    sublayers = [
        _sublayer(model, chain, kinds[chain[0]], hidden, seen)
        for chain in _chains(model, [name for name in seen.order if name in kinds], given, seen)
    ]
    for sublayer in sublayers:
        sublayer.before = source_of(seen.taken[sublayer.chain[0]], given)
    free = set(norms) - {sublayer.before for sublayer in sublayers}
    blocks: list[ResidualBlock] = []
    last: Value | None = None
    for sublayer in sublayers:
        left = {sublayer.chain[-1]: seen.given[sublayer.chain[-1]]}
        readers = (name for name in norms if name in free and source_of(seen.taken[name], left))
        sublayer.after = next(readers, "")
        junction = seen.taken[sublayer.entrance]
        if last is None or not are_equal(junction, last):
            blocks.append(ResidualBlock(layer=path, sublayers=[]))
        blocks[-1].sublayers.append(sublayer)
        last = junction
    used = {name for sublayer in sublayers for name in sublayer.modules}
    unexplained = _unexplained_modules(layer, path, used, seen)
    if unexplained:
        raise unsupported(model, f"{path} also has {', '.join(unexplained)}")
    return blocks


def _chains(
    model: Any, called: list[str], norms: dict[str, Value], seen: FirstCalls
) -> list[list[str]]:
    """Group the modules of a layer that feed each other into sublayers.

    A single module without weights is no sublayer.
    """
    chains: list[list[str]] = []
    for name in called:
        if name not in seen.given:
            continue
        ends = {chain[-1]: seen.given[chain[-1]] for chain in chains}
        # A norm with gain 1 may return a multiple of its input: its readers are not fed by a chain.
        end = source_of(seen.taken[name], {**ends, **norms})
        if end in ends:
            next(chain for chain in chains if chain[-1] == end).append(name)
        elif next(model.get_submodule(name).parameters(), None) is not None:
            chains.append([name])
    return chains


def _sublayer(model: Any, chain: list[str], kind: str, hidden: int, seen: FirstCalls) -> Sublayer:
    """Find the readers and writers of a chain of modules."""
    readers: list[Port] = []
    writers: list[Port] = []
    entering = {chain[0]: seen.taken[chain[0]]}
    for root in chain:
        for name, module in model.get_submodule(root).named_modules(prefix=root):
            reads = name in seen.taken and bool(source_of(seen.taken[name], entering))
            more_readers, more_writers = find_ports(name, module, hidden, reads=reads)
            readers += more_readers
            writers += more_writers
    if not readers or not writers:
        raise unsupported(model, f"{chain[0]} has no weights that read and write the stream")
    return Sublayer(kind=kind, chain=chain, before="", after="", readers=readers, writers=writers)


def _unexplained_modules(
    layer: nn.Module, path: str, used: set[str], seen: FirstCalls
) -> list[str]:
    """List the modules with weights that were called outside of a layer's sublayers and norms."""
    return [
        name
        for name, module in layer.named_modules(prefix=path)
        if (name in seen.taken or module is layer)
        and next(module.parameters(recurse=False), None) is not None
        and not any(f"{name}.".startswith(f"{root}.") for root in used)
    ]


def _outer_ports(model: nn.Module, layers: str, hidden: int) -> tuple[list[Port], str, str]:
    """Find what reads and writes the stream outside the layers.

    These are the tables of width h, the name of a norm right after the table ("" without one), and
    the name of the final norm.
    """
    path = layers.rpartition(".")[0]
    tables: list[Port] = []
    norms: dict[str, list[str]] = {"embedding": [], "final_norm": []}
    unknown: list[str] = []
    for child_name, child in model.get_submodule(path).named_children():
        name = f"{path}.{child_name}" if path else child_name
        role = locate(name).role
        if isinstance(child, nn.Embedding) and child.weight.shape[1] == hidden:
            tables.append(Port(child, "weight", 1))
        elif is_norm(child) and role in norms:
            norms[role].append(name)
        elif name != layers and next(child.parameters(), None) is not None:
            unknown.append(name)
    first, final = norms["embedding"], norms["final_norm"]
    if unknown or len(final) != 1 or len(first) > 1 or len(first) * len(tables) > 1:
        extra = ", ".join([*unknown, *first]) or f"{len(final)} final norms"
        raise unsupported(model, f"outside its layers it has {extra}")
    return tables, "".join(first), final[0]


def unsupported(model: nn.Module, reason: str) -> PrunescopeError:
    """Make the error for a model whose stream is not supported."""
    return PrunescopeError(
        f"the residual stream of {type(model).__name__} cannot be narrowed: {reason}",
        hint=f"{cutting('stream')} supports decoders that add attention, a mixer, an MLP or "
        "experts to one stream; `prunescope families --architecture` lists the known ones",
    )
