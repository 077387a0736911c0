"""The list of keys that a run keeps is that of the code which reads configs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from prunescope.taxonomy.configs import config_sizes as config_module
from prunescope.taxonomy.configs.architecture_table import ARCHITECTURES, OTHERS
from prunescope.taxonomy.configs.config import READ

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "config",
    "block_configs",
    "hybrid_configs",
    "mixer_configs",
    "config_traits",
    "tree_mixers",
    "tree_shape",
    "vision_config",
)
CONFIGS = {"cfg", "config", "inner", "attention"}
TABLES = ("HIDDEN", "LAYERS", "HEADS", "KV_HEADS", "HEAD_DIM", "MLP", "VOCAB", "EXPERTS",
          "TOP_K", "EXPERT_WIDTHS", "DENSE_FIRST", "GROUPS")  # fmt: skip


def strings(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and type(n.value) is str}


def is_config(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in CONFIGS


def read_in(module: str) -> Iterator[str]:
    """Yield the words by which a module looks something up in a config."""
    (path,) = (ROOT / "taxonomy").rglob(f"{module}.py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "get" and is_config(node.func.value):
                yield from strings(node.args[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            of_config = node.func.id == "_whole" and is_config(node.args[0])
            if node.func.id in ("size_in", "_count", "_sizes", "_size", "_layer_list") or of_config:
                yield from (word for arg in node.args[1:] for word in strings(arg))
        elif isinstance(node, ast.Subscript) and is_config(node.value):
            yield from strings(node.slice)
        elif isinstance(node, ast.Compare) and is_config(node.comparators[0]):
            yield from strings(node.left)
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            yield from strings(node.iter)


def test_the_keys_are_those_that_are_read() -> None:
    seen = {word for module in MODULES for word in read_in(module)}
    seen |= {name for table in TABLES for name in getattr(config_module, table)}
    rows = [*(entry.unwritten for entry in ARCHITECTURES), *(own for _, own in OTHERS)]
    seen |= {own.biases.key for own in rows} | {own.positions[0] for own in rows if own.positions}
    seen -= {""}
    assert all(re.fullmatch(r"\w+", word) for word in seen)
    assert seen == READ
