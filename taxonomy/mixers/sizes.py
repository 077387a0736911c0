"""The dimensions of a mixer of tokens other than attention, and the description of a kind of mixer.

A kind says, as functions of the dimensions, everything that a work model needs of it: its matrices,
its convolution, its recurrence token by token and chunk by chunk, what it carries from one token to
the next, and which of its dimensions a pruning may cut. `prunescope.taxonomy.mixers.KINDS` has
them all, and no other code asks for a kind by its name. FLOPs count a multiply and an add each;
exponentials, square roots and maxima are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

MixerName = Literal[
    "", "linear", "kda", "ssm", "mamba-1", "lightning", "mlstm", "rg-lru", "rwkv", "conv"
]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]  # as in formats, which is too deep to import here
Linears = dict[str, tuple[int, int]]  # (N, K) of weight matrices, by role or role.part
Blocks = dict[str, tuple[int, int, int]]  # of block-diagonal ones: how many blocks of (N, K)


class MixerSizes(Struct, frozen=True, kw_only=True):
    """The dimensions of a mixer: `kind` is a key of KINDS, or "" where none is known.

    Counts are numbers stored. What a dimension means in a kind is in the file of the kind.
    """

    kind: MixerName = ""
    width: Count = 0  # channels that it puts out, heads · head size
    heads: Count = 0
    keys: Count = 0  # width of the keys, or of B, of all heads or groups together
    state: Count = 0  # numbers of recurrent state per channel
    taps: Count = 0  # of the convolution
    rank: Count = 0  # of the matrices that are stored as two
    chunk: Count = 0  # tokens that a prefill takes at once; 0: one after the other
    extras: Count = 0  # stored besides matrices and taps: biases, norm, steps, decays


Size = Callable[[MixerSizes], int]
Flop = Callable[[MixerSizes], float]


def none(_mixer: MixerSizes) -> int:
    """Return 0, for a kind without the thing."""
    return 0


def no_blocks(_mixer: MixerSizes) -> Blocks:
    """Return no block-diagonal matrices."""
    return {}


class MixerKind(Struct, frozen=True, kw_only=True):
    """A kind of mixer, as functions of its dimensions.

    `linears` take the width of the residual stream too. `blocks`: block-diagonal matrices, a
    batched GEMM each. `channels`: those of the convolution; `moves`: the elements that it reads and
    writes of each. `moved`: the elements in and out of the recurrence per token. `step_flop`: the
    FLOPs of a token after the other, None for a kind without a recurrence; `chunk_flop`: those of a
    token where `chunk` tokens are taken at once, on matrix units. `carried`: the elements of the
    model's own format that it keeps of a sequence besides the state. `cuts`: by what is cut, which
    dimensions shrink with it; every other dimension stays.
    """

    title: str
    linears: Callable[[MixerSizes, int], Linears]
    blocks: Callable[[MixerSizes], Blocks] = no_blocks
    channels: Size = none
    moves: int = 2
    moved: Size = none
    step_flop: Flop | None = None
    chunk_flop: Flop | None = None
    carried: Size = none
    cuts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def inputs_of_taps(mixer: MixerSizes) -> int:
    """Count the inputs that a convolution keeps: as many as it has taps, of each channel."""
    return (mixer.width + 2 * mixer.keys) * mixer.taps


def scan_in_chunks(mixer: MixerSizes, keys: int) -> float:
    """Return the FLOPs per token of a linear recurrence in chunks (arXiv 2405.21060, 6).

    In a chunk of Q tokens every query meets every key, 2·Q·keys, and the scores every value,
    2·Q·width, as matrix units compute both halves of the square. Each value is added to the state
    and the state is read, 2·width·state each; the state decays and is carried on once a chunk,
    2·width·state/Q.
    """
    q, numbers = mixer.chunk, mixer.width * mixer.state
    return 2 * q * (keys + mixer.width) + 4 * numbers + 2 * numbers / q
