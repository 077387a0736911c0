"""Compare the shapes that prunescope reads with the modules that transformers builds.

For every model type of each head, the model is built without weights, at its defaults and at other
sizes. Counted are the types whose parameters are exact, by which witness, and those that are
refused, with the reason. Writes `docs/models.md` and `taxonomy/configs/agreed.json`: the types
whose config alone gives the parameters of the tree at every size.

    python benchmarks/models.py --write
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from prunescope.taxonomy import witnesses
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.inventory import Inventory
from prunescope.taxonomy.inventory_reader import read_inventories_by
from prunescope.taxonomy.shape import ModelShape
from prunescope.tracer.model import inventory as trees

ROOT = Path(__file__).resolve().parent.parent
HEADS = {
    "CAUSAL_LM": "Causal language models",
    "IMAGE_TEXT_TO_TEXT": "Image and text to text",
    "SEQ_TO_SEQ_CAUSAL_LM": "Encoder-decoders",
    "MASKED_LM": "Masked language models",
    "IMAGE_CLASSIFICATION": "Image classification",
}
SIZES: tuple[dict[str, Any], ...] = (
    {},
    {"num_hidden_layers": 6},
    {
        "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
        "num_key_value_heads": 4, "num_hidden_layers": 4,
    },
    {
        "num_hidden_layers": 4, "vocab_size": 5120, "attention_bias": True,
        "tie_word_embeddings": True,
    },
)  # fmt: skip


class Row(NamedTuple):
    """A model type at one size: what was read of it, and how."""

    kind: str
    parameters: int
    told: int | None  # by the config alone
    read: int | None  # by both witnesses
    witness: str
    reason: str  # for a refusal

    @property
    def is_exact(self) -> bool:
        """Whether both witnesses together give the parameters of the modules."""
        return self.read == self.parameters


def main() -> int:
    """Count, print and, with `--write`, write the page and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write docs/models.md and agreed.json")
    parser.add_argument("--head", choices=HEADS, action="append", help="only these heads")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    heads = options.head or list(HEADS)
    rows: dict[tuple[str, int], list[Row]] = {}
    for head in heads:
        for number, size in enumerate(SIZES):
            rows[head, number] = list(_rows(head, size))
            sys.stdout.write(f"{head} {size} {_counts(rows[head, number])}\n")
            sys.stdout.flush()
    if options.write:
        table = _agreed(rows)
        path = ROOT / "taxonomy/configs/agreed.json"
        path.write_text(json.dumps(msgspec.to_builtins(table), indent=1) + "\n")
        (ROOT / "docs/models.md").write_text(_page(rows))
    off = [row for each in rows.values() for row in each if row.read and not row.is_exact]
    sys.stdout.write(f"silently off: {[row.kind for row in off]}\n")
    return 1 if off else 0


def _rows(head: str, sizes: dict[str, Any]) -> Iterator[Row]:
    """Yield a row for each type of a head that transformers builds."""
    names = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES")
    for kind, classes in names.items():
        cls = classes if isinstance(classes, str) else classes[0]
        config = _config(kind, cls, sizes)
        tree = None if config is None else _build(config, follow=not sizes)
        if config is not None and tree is not None:
            yield _read(kind, config, tree)


def _config(kind: str, cls: str, sizes: dict[str, Any]) -> dict[str, Any] | None:
    """Return the config of a type with other sizes as a dict; None if its class refuses them.

    A size that the type has no key for is left out. Of a model of several parts, the part of the
    text has the sizes.
    """
    try:
        usual = CONFIG_MAPPING[kind]()
        text = usual.get_text_config()
        changes = {k: v for k, v in sizes.items() if hasattr(usual, k)}
        for name, part in vars(usual).items():
            if part is text and sizes:
                own = {k: v for k, v in sizes.items() if hasattr(text, k)}
                changes[name] = {"model_type": text.model_type, **own}
        made = CONFIG_MAPPING[kind](**changes)
        config: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
    except Exception:  # noqa: BLE001 - classes check their sizes in any way
        return None
    return {**config, "architectures": [cls]}


def _build(config: dict[str, Any], *, follow: bool) -> Inventory | None:
    """Build a tree, without a forward through it unless `follow`."""
    unfollowed = mock.patch.object(trees, "_rows", lambda _model: None)
    with contextlib.nullcontext() if follow else unfollowed:
        return trees.build_inventory(config)


def _read(kind: str, config: dict[str, Any], tree: Inventory) -> Row:
    """Read a config alone and by both witnesses, and compare with its tree."""
    read_inventories_by(lambda _config: tree)
    witnesses.forget()
    try:
        told = ModelShape.from_config(config).parameters()
    except PrunescopeError:
        told = None
    try:
        seen = witnesses.read_witnesses(config)
    except PrunescopeError as error:
        return Row(kind, tree.parameters, told, None, "", error.problem)
    return Row(kind, tree.parameters, told, seen.shape.parameters(), seen.witness, "")


def _counts(rows: list[Row]) -> str:
    exact, refused = sum(row.is_exact for row in rows), sum(row.read is None for row in rows)
    how = Counter(row.witness for row in rows if row.is_exact)
    off = len(rows) - exact - refused
    return f"{exact} of {len(rows)} exact ({dict(how)}), {refused} refused, {off} off"


def _agreed(rows: dict[tuple[str, int], list[Row]]) -> witnesses.Agreed:
    """Return the types whose config alone is exact at every size and under every head."""
    right = {row.kind for row in rows["CAUSAL_LM", 0]}
    for each in rows.values():
        right -= {row.kind for row in each if row.told != row.parameters}
    library = f"transformers {transformers.__version__}"
    return witnesses.Agreed(library=library, types=tuple(sorted(right)))


def _page(rows: dict[tuple[str, int], list[Row]]) -> str:
    """Return the page of the comparison."""
    lines = [
        "# Models",
        "",
        "Which model types prunescope reads, compared with the modules that "
        f"transformers {transformers.__version__} builds of their configs",
        "with the class of a head in `architectures`, at their default sizes and at three others. "
        "Made by `python benchmarks/models.py --write`.",
        "",
        "The first witness of a model is its module tree, built without weights; the second is",
        "its config. Their parameters are compared, and where they differ the tree holds. *Config*",
        "means that the config alone is known to agree, so that no tree is built; *both*, that",
        "both agree at these sizes; *modules*, that the shape is that of the tree. A tree with",
        "parts that are not understood is refused. No type has other parameters than its modules.",
        "",
        "Exact are, of the types that are built (all others are refused):",
        "",
        "| head | defaults | 1 | 2 | 3 |",
        "|---|---:|---:|---:|---:|",
    ]
    for head in dict.fromkeys(head for head, _ in rows):
        counts = [
            f"{sum(row.is_exact for row in rows[head, number])} of {len(rows[head, number])}"
            for number in range(len(SIZES))
        ]
        lines.append(f"| {HEADS[head]} | {' | '.join(counts)} |")
    for number, size in enumerate(SIZES[1:], 1):
        keys = ", ".join(f"{key} {value}" for key, value in size.items())
        lines += ["", f"{number}: {keys}."]
    for (head, number), each in rows.items():
        if number:
            continue
        lines += ["", f"## {HEADS[head]}", "", "| type | parameters | witness |", "|---|---:|---|"]
        for row in sorted(each):
            why = row.witness if row.is_exact else f"refused: {_short(row.reason)}"
            lines.append(f"| {row.kind} | {row.parameters:,} | {why} |")
    return "\n".join(lines) + "\n"


def _short(reason: str) -> str:
    """Return a reason in one cell of a table."""
    text = reason.partition(" are not understood: ")[2] or reason
    return text.replace("|", "/").replace("\n", " ")[:160]


if __name__ == "__main__":
    sys.exit(main())
