"""The kinds of mixers of tokens other than attention, by the names that run.json has for them."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from prunescope.taxonomy.mixers.convolution import SHORT_CONVOLUTION
from prunescope.taxonomy.mixers.delta import GATED_DELTA, KIMI_DELTA
from prunescope.taxonomy.mixers.linear_attention import LIGHTNING, MLSTM
from prunescope.taxonomy.mixers.recurrences import RG_LRU, RWKV
from prunescope.taxonomy.mixers.sizes import Linears, MixerKind, MixerSizes
from prunescope.taxonomy.mixers.state_space import MAMBA, MAMBA_2

STATE_ITEMSIZE = 4  # a recurrence keeps its state in float32, whatever the weights are

KINDS: Mapping[str, MixerKind] = {
    "": MixerKind(title="", linears=lambda _mixer, _hidden: {}),
    "linear": GATED_DELTA,
    "kda": KIMI_DELTA,
    "ssm": MAMBA_2,
    "mamba-1": MAMBA,
    "lightning": LIGHTNING,
    "mlstm": MLSTM,
    "rg-lru": RG_LRU,
    "rwkv": RWKV,
    "conv": SHORT_CONVOLUTION,
}


class MixerShape(MixerSizes, frozen=True):
    """A mixer in parallel with or in place of attention in some layers, and what it costs."""

    @property
    def work(self) -> MixerKind:
        """The kind of the mixer, with its functions."""
        return KINDS[self.kind]

    @property
    def channels(self) -> int:
        """The channels of its convolution."""
        return self.work.channels(self)

    def linears(self, hidden: int) -> Linears:
        """Return (N, K) of the matrices into and out of it, by role and part ("mixer_in.gates")."""
        return self.work.linears(self, hidden)

    def parameters(self, hidden: int) -> int:
        """Count every number of one mixer."""
        matrices = sum(n * k for n, k in self.linears(hidden).values())
        matrices += sum(count * n * k for count, n, k in self.work.blocks(self).values())
        return matrices + self.channels * self.taps + self.extras

    def state_bytes(self, itemsize: float = 2) -> float:
        """Return the bytes that one mixer keeps of a sequence, however long the sequence is.

        They are the state of its recurrence, always in float32, and the last inputs of its
        convolution, of `itemsize` bytes each.
        """
        return self.width * self.state * STATE_ITEMSIZE + self.work.carried(self) * itemsize

    def scan_flop(self, tokens: int, *, at_once: bool) -> float:
        """Return the FLOPs of the recurrence of a sequence of `tokens`.

        Those of a prefill (`at_once`) are of chunks where the kind has them and the size of one is
        known, of the tokens one after the other else.
        """
        step, chunked = self.work.step_flop, self.work.chunk_flop
        if step is None:
            return 0.0
        if not (at_once and chunked and self.chunk):
            return tokens * step(self)
        return tokens * chunked(replace(self, chunk=min(self.chunk, tokens)))

    def cut(self, what: str, kept: float) -> MixerShape:
        """Return the mixer with the share `kept` of its heads, channels or state.

        A number of heads is a whole one; what belongs to a head goes with it. Other stored numbers
        (`extras`) count as if each belonged to a channel.
        """
        sizes = self.work.cuts.get(what, ())
        if not sizes:
            return self
        share = kept
        if what == "heads" and self.heads:
            share = max(1, round(self.heads * kept)) / self.heads
        changed = {name: round(getattr(self, name) * share) for name in sizes}
        if "width" in changed:
            changed["extras"] = round(self.extras * changed["width"] / self.width)
        return replace(self, **changed)
