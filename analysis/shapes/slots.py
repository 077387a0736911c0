"""The GEMMs of a decoder layer in the order in which it runs them, from the model's config.

In: ModelShape, the degree of tensor parallelism. Out: slots, a role with the N and K that one
rank's kernel has, before and after attention, in each of the ways in which they are fused.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from prunescope.taxonomy.shape import ModelShape

GEMM, GROUPED = "gemm", "grouped"
_PADDED_VOCAB = 64  # serving engines round a vocabulary up that they share out


@dataclass(frozen=True, slots=True)
class Slot:
    """A GEMM that a layer runs. N and K are those of one rank, whole matrices of all experts
    apart: those of one expert."""

    role: str
    n: int
    k: int
    what: str = GEMM

    @property
    def size(self) -> int:
        """N·K."""
        return self.n * self.k


@dataclass(frozen=True, slots=True)
class Layer:
    """One way to run a layer: slots before attention, and after it."""

    before: tuple[Slot, ...]
    after: tuple[Slot, ...]

    @property
    def cycle(self) -> tuple[Slot, ...]:
        """From one attention to the next."""
        return (*self.after, *self.before)


def divides(shape: ModelShape, ranks: int) -> bool:
    """Whether a model can be shared out over so many ranks."""
    kv = shape.kv_heads % ranks == 0 or ranks % shape.kv_heads == 0
    width = shape.intermediate or shape.expert_intermediate
    return shape.heads % ranks == 0 and kv and width % ranks == 0


def role_slots(shape: ModelShape, ranks: int = 1) -> dict[str, Slot]:
    """Every role of the model, fused and not; `experts` are told in `expert_slots`."""
    found = {role: _shard(role, n, k, shape, ranks) for role, (n, k) in shape.linears().items()}
    if "v" in found:
        rows = sum(found[role].n for role in ("q", "k", "v"))
        found["qkv"] = Slot("qkv", rows, shape.hidden)
    if "gate" in found:
        found["gate_up"] = Slot("gate_up", found["gate"].n + found["up"].n, found["up"].k)
    if shape.experts:
        found["router"] = Slot("router", shape.experts, shape.hidden)
    for role, (n, k) in shape.mixer_linears().items():
        if "." not in role and ranks == 1 and "mixer_in.gates" not in shape.mixer_linears():
            found[role] = Slot(role, n, k)
    padded = -(-shape.vocab // _PADDED_VOCAB) * _PADDED_VOCAB if ranks > 1 else shape.vocab
    found["lm_head"] = Slot("lm_head", -(-padded // ranks), shape.hidden)
    return found


def expert_slots(shape: ModelShape, ranks: int = 1) -> tuple[Slot, ...]:
    """The two products of the experts: gate and up together, then down."""
    width = shape.expert_intermediate // ranks
    first = width * (1 + shape.gated)
    return (
        Slot("experts", first, shape.hidden, GROUPED),
        Slot("experts", shape.hidden, width, GROUPED),
    )


def layer_ways(shape: ModelShape, ranks: int = 1, *, experts: bool = False) -> list[Layer]:
    """The ways in which a layer with attention may run, the most common first."""
    told = role_slots(shape, ranks)
    befores = [("q", "k", "v"), ("qkv",)]
    if shape.kv_rank is not None:
        query = ("q_a", "q_b") if shape.q_rank else ("q",)
        befores = [(*query, "kv_a", "kv_b")]
        if shape.q_rank:
            befores.append(("q_a", "kv_a", "q_b", "kv_b"))
    plain = [("gate", "up", "down"), ("gate_up", "down")] if shape.gated else [("up", "down")]
    ways = []
    for before, after in product(befores, plain if not experts else [()]):
        tail = [told["o"], *(told[role] for role in after)]
        if experts:
            tail += [told["router"], *expert_slots(shape, ranks)]
        ways.append(Layer(tuple(told[role] for role in before), tuple(tail)))
    return ways


def _shard(role: str, n: int, k: int, shape: ModelShape, ranks: int) -> Slot:
    """One rank's part: rows of the matrices into attention and MLP, columns of those out of them;
    keys and values are there once a rank where there are fewer heads."""
    if ranks == 1 or role in ("q_a", "kv_a"):
        return Slot(role, n, k)
    if role in ("o", "down"):
        return Slot(role, n, k // ranks)
    if role in ("k", "v") and shape.kv_heads < ranks:
        return Slot(role, n // shape.kv_heads, k)
    return Slot(role, n // ranks, k)
