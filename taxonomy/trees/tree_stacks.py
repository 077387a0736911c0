"""The stacks of layers in a module tree, and which of them is an encoder's.

In: an Inventory. Out: its lists of modules, each by its place and name; of a model whose decoder
attends to an encoder, an Inventory of each, which are read as models of their own, and the heads
by which a layer of the decoder attends to the encoder's tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.inventory import Inventory, StoredModule
from prunescope.taxonomy.lazy_pattern import lazy_pattern

IN_LIST = lazy_pattern(r"(.*?)(?:^|\.)(\w+)\.(\d+)(?:\.(.*))?$")
# Attention to the tokens of another stack.
CROSS = lazy_pattern(r"(^|\.)(encoder_attn|cross_?attn|cross_?attention|EncDecAttention)")
_TOWER = lazy_pattern(r"vision|visual|image|audio|speech")
_PRODUCT = lazy_pattern(r"Linear|Conv1D|Dense")
# A table that the first layer stores for all of them (T5).
_TABLE = lazy_pattern(r"(^|\.)relative_attention_bias$")

Lists = dict[tuple[str, str], dict[int, dict[str, StoredModule]]]


def not_read(inventory: Inventory, why: str) -> PrunescopeError:
    """Return the refusal of a tree, with what is not understood of it."""
    return PrunescopeError(
        f"the modules of {inventory.model_class} ({inventory.library}) are not understood: {why}",
        hint="trace it: a trace needs no theory of the model; or give a model of another class",
    )


def lists_of(inventory: Inventory) -> Lists:
    """Return the modules of every list by its place and name, then by number and inner path."""
    lists: Lists = {}
    for module in inventory.modules:
        match = IN_LIST.match(module.path)
        if match and not _TABLE.search(module.path):
            key = (match.group(1), match.group(2))
            inner = lists.setdefault(key, {}).setdefault(int(match.group(3)), {})
            inner[match.group(4) or ""] = module
    return lists


def is_stack(
    stack: Mapping[int, Mapping[str, StoredModule]], inventory: Inventory, key: tuple[str, str]
) -> bool:
    """Return whether a list of modules is a stack of layers that tokens of a text pass."""
    matrices = [
        m for inner in stack.values() for path, m in inner.items() if path and matrix_sides(m)
    ]
    if not matrices:
        return False
    if inventory.followed:
        return any((m.passes or 0) >= 1 for m in matrices)
    return not _TOWER.search(".".join(key))


def matrix_sides(module: StoredModule) -> tuple[int, int] | None:
    """Return [N, K] of the matrix that a module multiplies by; None if it has none."""
    weight = module.weight("weight")
    if weight is None or len(weight.shape) != 2 or not _PRODUCT.search(module.kind):
        return None
    return weight.shape[0], weight.shape[1]


def split_encoder(inventory: Inventory) -> tuple[Inventory | None, Inventory]:
    """Split a tree whose decoder attends to an encoder into the modules of each.

    The encoder is None if there is none. A table of tokens that both use is the decoder's.

    Raises:
        PrunescopeError: There is not one encoder and one decoder.
    """
    if not inventory.is_seq2seq:
        return None, inventory
    crossing = [m.path for m in inventory.modules if m.passes != 0 and CROSS.search(m.path)]
    decoders = {match.group(1) for path in crossing if (match := IN_LIST.match(path))}
    if not decoders:
        return None, inventory
    lists = lists_of(inventory)
    stacks = {key[0] for key, stack in lists.items() if is_stack(stack, inventory, key)}
    encoders = stacks - decoders
    if len(encoders) != 1 or len(decoders) != 1:
        raise not_read(inventory, f"{len(encoders)} stacks of layers stand beside its decoder")
    root = _root(*encoders, *decoders)
    own = [module for module in inventory.modules if module.path.startswith(f"{root}.")]
    others = [module for module in inventory.modules if not module.path.startswith(f"{root}.")]
    tied = {weight.shape for module in others for weight in module.weights if weight.tied}
    shared = [m for m in own if not IN_LIST.match(m.path) and _owned(m) & tied]
    kept = [module for module in own if all(module is not table for table in shared)]
    encoder = msgspec.structs.replace(inventory, modules=tuple(kept), is_encoder=True)
    return encoder, msgspec.structs.replace(inventory, modules=(*shared, *others))


def _root(encoder: str, decoder: str) -> str:
    """Return the outermost module around a list of the encoder that the decoder's is not inside."""
    root = encoder
    while "." in root and not f"{decoder}.".startswith(f"{root.rpartition('.')[0]}."):
        root = root.rpartition(".")[0]
    return root


def _owned(module: StoredModule) -> set[tuple[int, ...]]:
    """Return the shapes of the matrices that a module owns."""
    return {w.shape for w in module.weights if not w.tied and len(w.shape) == 2}


def read_cross(
    roles: Mapping[str, Sequence[StoredModule]], hidden: int, head_dim: int
) -> tuple[int, int, int, int] | None:
    """Return heads, KV heads, their size and the encoder's width; None if they contradict.

    Args:
        roles: The modules of a layer's attention to its encoder, by role.
        hidden: The width of the decoder's stream.
        head_dim: The size of a head.
    """
    sizes = {role: matrix_sides(modules[0]) for role, modules in roles.items()}
    if {role: len(modules) for role, modules in roles.items()} != dict.fromkeys("qkvo", 1):
        return None
    q, k, v, o = (sizes[role] or (0, 0) for role in "qkvo")
    if not head_dim or q[0] % head_dim or k[0] % head_dim or not k[0]:
        return None
    if k != v or q[1] != hidden or o != (hidden, q[0]):
        return None
    return q[0] // head_dim, k[0] // head_dim, head_dim, k[1]


def own_table(outside: Sequence[StoredModule]) -> tuple[int, int]:
    """Return rows and features of the table that an encoder alone has; 0 rows without one."""
    tables = [
        m.weights[0].shape
        for m in outside
        if m.kind.endswith("Embedding") and not re.search("position|token_type", m.path)
        if len(m.weights[0].shape) == 2 and not m.weights[0].tied
    ]
    rows, features = max(tables, key=lambda shape: shape[0] * shape[1], default=(0, 0))
    return rows, features
