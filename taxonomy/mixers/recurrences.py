"""Recurrences of each channel by itself: RG-LRU (arXiv 2402.19427) and RWKV-4 (arXiv 2305.13048).

No matrix unit can help them: a prefill runs them token by token, or as a scan of pairs.
"""

from __future__ import annotations

from prunescope.taxonomy.mixers.sizes import Blocks, Linears, MixerKind, MixerSizes


def _rg_lru(mixer: MixerSizes, hidden: int) -> Linears:
    """Return the matrices: the gate of the output and the input of the convolution."""
    return {
        "mixer_in.y": (mixer.width, hidden),
        "mixer_in.x": (mixer.width, hidden),
        "mixer_out": (hidden, mixer.width),
    }


def _gates(mixer: MixerSizes) -> Blocks:
    """Return the gates of input and recurrence: a square block of each head."""
    block = mixer.width // max(1, mixer.heads)
    return {
        "mixer_in.input_gate": (mixer.heads, block, block),
        "mixer_in.recurrent_gate": (mixer.heads, block, block),
    }


def _rwkv(mixer: MixerSizes, hidden: int) -> Linears:
    """Return the matrices: keys, values and receptances."""
    each = (mixer.width, hidden)
    return {
        "mixer_in.k": each,
        "mixer_in.v": each,
        "mixer_in.r": each,
        "mixer_out": (hidden, mixer.width),
    }


RG_LRU = MixerKind(
    title="RG-LRU",
    linears=_rg_lru,
    blocks=_gates,
    channels=lambda mixer: mixer.width,
    moved=lambda mixer: 5 * mixer.width,  # x, two gates, y and the output
    step_flop=lambda mixer: 4 * mixer.width,  # decay, gate of the input, its norm, sum
    carried=lambda mixer: mixer.width * mixer.taps,
    cuts={"heads": ("heads", "width")},
)
# A channel keeps a numerator, a denominator and a maximum (3 numbers of state). Of the output it
# computes 2 shifts, a sum of two products and one of a product, and a division: 9; of the state the
# same without the division, and a decay: 8. Both sublayers keep their last input, to mix it in.
RWKV = MixerKind(
    title="RWKV-4",
    linears=_rwkv,
    moved=lambda mixer: 4 * mixer.width,  # k, v, r and the output
    step_flop=lambda mixer: 17 * mixer.width,
    carried=lambda mixer: 2 * mixer.width,
    cuts={"channels": ("width",)},
)
