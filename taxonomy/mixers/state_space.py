"""State-space mixers: Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060).

`keys` is the width of B, and of C: of all groups together in Mamba-2, of the one that all channels
share in Mamba. `state` is N, the numbers of state per channel.
"""

from __future__ import annotations

from prunescope.taxonomy.mixers.sizes import (
    Linears,
    MixerKind,
    MixerSizes,
    inputs_of_taps,
    scan_in_chunks,
)


def _mamba_2(mixer: MixerSizes, hidden: int) -> Linears:
    """Return the matrices: x and its gate, B and C, and a step for each head, all in one."""
    rows = 2 * mixer.width + 2 * mixer.keys + mixer.heads
    return {"mixer_in": (rows, hidden), "mixer_out": (hidden, mixer.width)}


def _mamba(mixer: MixerSizes, hidden: int) -> Linears:
    """Return the matrices: x and its gate; from x a step of a low rank, B and C; the whole step."""
    return {
        "mixer_in": (2 * mixer.width, hidden),
        "mixer_in.x": (mixer.rank + 2 * mixer.state, mixer.width),
        "mixer_in.dt": (mixer.width, mixer.rank),
        "mixer_out": (hidden, mixer.width),
    }


# Numbers of Mamba-2's state are decayed, 1; get x·B, 2; and are read by C, 2. In Mamba the decay of
# each is a product of its own, 1. Minitron-SSM (arXiv 2504.11409) cuts heads, the same number in
# each group, or channels of all heads; B and C belong to the groups, which stay.
MAMBA_2 = MixerKind(
    title="Mamba-2",
    linears=_mamba_2,
    channels=lambda mixer: mixer.width + 2 * mixer.keys,
    # x, its gate and the output; B and C; a step per head
    moved=lambda mixer: 3 * mixer.width + 2 * mixer.keys + mixer.heads,
    step_flop=lambda mixer: 5 * mixer.width * mixer.state,
    chunk_flop=lambda mixer: scan_in_chunks(mixer, mixer.keys),
    carried=inputs_of_taps,
    cuts={"heads": ("heads", "width"), "channels": ("width",), "state": ("state", "keys")},
)
MAMBA = MixerKind(
    title="Mamba",
    linears=_mamba,
    channels=lambda mixer: mixer.width,
    # x, its gate, its step and the output; B and C
    moved=lambda mixer: 4 * mixer.width + 2 * mixer.state,
    step_flop=lambda mixer: 6 * mixer.width * mixer.state,
    carried=lambda mixer: mixer.width * mixer.taps,
    cuts={"channels": ("width",), "state": ("state",)},
)
