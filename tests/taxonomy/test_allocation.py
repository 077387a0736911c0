"""The sizes that a layer may keep, and the shapes that they leave."""

from prunescope.taxonomy.allocations.allocation import LayerOption
from prunescope.taxonomy.allocations.allocation_candidates import (
    candidates,
    changed_layer,
    layer_ranks,
)
from prunescope.taxonomy.shape import ModelShape


def test_low_ranks_by_hand() -> None:
    """Half of the numbers of a matrix give a rank of 0.5·N·K/(N+K), rounded up to 16s.

    q and o are [128, 128], k and v [64, 128], gate, up and down 352 by 128. The ranks are
    0.5·128·128/256 = 32, 0.5·64·128/192 = 21.3 and 0.5·352·128/480 = 46.9, which are cut off to 21
    and 46 before they are rounded up.
    """
    config = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 352,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 512,
    }  # fmt: skip
    shape = ModelShape.from_config(config)
    both = LayerOption(cost=0, loss=0, attention_lowrank=50, mlp_lowrank=50)
    attention = {"q": 32, "k": 32, "v": 32, "o": 32}
    assert layer_ranks(shape, 1, both) == attention | dict.fromkeys(("gate", "up", "down"), 48)
    changed = changed_layer(shape, 1, both)
    assert changed.layer(0).ranks == () and dict(changed.layer(1).ranks)["down"] == 48
    # A pair of rank r has r·(N + K) numbers.
    pairs = 2 * 32 * 256 + 2 * 32 * 192 + 3 * 48 * 480
    matrices = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 352 * 128
    assert shape.parameters() - changed.parameters() == matrices - pairs
    fused = ModelShape.from_config({**config, "model_type": "phi3"})
    assert candidates(fused, 0, low_rank=True).attention_lowrank == ()
