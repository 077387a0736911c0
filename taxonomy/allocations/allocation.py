"""One way to run a layer: what it keeps of its parts, its cost and the loss that it adds.

Costs add up over layers, and so do losses, which are rises of the log perplexity in nats per token.
`analysis/predict/allocation_solver.py` chooses one option per layer.
"""

from __future__ import annotations

from dataclasses import dataclass

# Ways to cut a layer, by the name of the size that is kept: two of an attention, two of an MLP.
ATTENTION_PARTS = ("kv_heads", "attention_lowrank")
MLP_PARTS = ("channels", "mlp_lowrank")
PARTS = ("kv_heads", "channels", "attention_lowrank", "mlp_lowrank")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOption:
    """One way to run a layer, with its cost and the loss that it adds.

    `dropped`: the layer is removed; one layer of a model has to stay. `attention_lowrank` and
    `mlp_lowrank` are the percentage of the parameters of its matrices that stay, with each matrix
    stored as two of a low rank. A size of None is as in the dense layer.
    """

    cost: float
    loss: float
    kv_heads: int | None = None
    channels: int | None = None
    attention_lowrank: int | None = None
    mlp_lowrank: int | None = None
    dropped: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """The kept size of each part that is cut, by the name of the part."""
        every = {name: getattr(self, name) for name in PARTS}
        return {name: size for name, size in every.items() if size is not None}
