"""The settings of `--recover` and of the sweep key `recover`, checked without a model or a text.

In: "steps=100,rank=16" or the same as a mapping. Out: Recovery, with every value checked.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from prunescope.taxonomy.arguments import home_path, number, pairs, whole_number
from prunescope.taxonomy.errors import PrunescopeError, nearest

_MOST = {"steps": 1_000_000, "rank": 65_536, "batch": 4096, "length": 1 << 20}
_LEAST = {"steps": 1, "rank": 1, "batch": 1, "length": 8}
TARGETS = ("all", "attention", "mlp")


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """The settings of a training: `steps` of AdamW over `batch` sequences of `length` tokens.

    The adapters have rank `rank`, and the learning rate falls from `lr` by a cosine. `text` is a
    UTF-8 file whose first half trains; None means the text that calibrates. `target` is all linears
    of the layers, or a part of them.
    """

    steps: int
    rank: int = 16
    lr: float = 1e-3
    batch: int = 2
    length: int = 512
    text: Path | None = None
    target: str = "all"

    def plain(self) -> dict[str, Any]:
        """Return the values as JSON, without a local path."""
        return {**dataclasses.asdict(self), "text": None if self.text is None else self.text.name}


_KEYS = tuple(f.name for f in dataclasses.fields(Recovery))


def read_recovery(
    value: str | Mapping[str, Any] | Recovery | None, *, where: str = "--recover"
) -> Recovery | None:
    """Read the settings of a training.

    Args:
        value: The settings as a text, a mapping or a Recovery; None means no training.
        where: The option or key that messages name.

    Returns:
        The settings; None for no training.

    Raises:
        PrunescopeError: A key is unknown or a value is invalid; the first mistake is reported.
    """
    if value is None or isinstance(value, Recovery):
        return value
    if isinstance(value, str):
        value = pairs(value.split(","), option=where, example="steps=100")
    if not isinstance(value, Mapping):
        raise PrunescopeError(
            f"{where}: {reprlib.repr(value)} is not a training",
            hint="give a mapping such as steps: 100",
        )
    for key in value:
        if key not in _KEYS:
            raise PrunescopeError(
                f"{where} has no {reprlib.repr(key)}",
                hint=f"nearest: {nearest(str(key)[:99], _KEYS)}; known: {', '.join(_KEYS)}",
            )
    if value.get("steps") is None:
        raise PrunescopeError(f"{where} gives no number of steps", hint=f"{where} steps=100")
    values = {
        key: _READERS[key](f"{where} {key}", entry)
        for key, entry in value.items()
        if entry is not None
    }
    return Recovery(**values)


def training_name(method: str, sparsity: float, select: str, seed: int) -> str:
    """Return the name of a pruned model's training, which is unique in a sweep."""
    return f"{method} {sparsity:g} {select} seed {seed}"


def check_installed() -> None:
    """Check that peft, which trains the adapters, is installed.

    Raises:
        PrunescopeError: It is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise PrunescopeError(
            "recovery training needs peft", hint="pip install 'prunescope[recover]'"
        )


def _read_count(where: str, value: Any) -> int:
    name = where.rpartition(" ")[2]
    least, most = _LEAST[name], _MOST[name]
    count = None if isinstance(value, bool) else whole_number(str(value))
    if count is None or not least <= count <= most:
        raise PrunescopeError(
            f"{where}={reprlib.repr(value)} is invalid",
            hint=f"a whole number from {least} to {most}",
        )
    return count


def _read_rate(where: str, value: Any) -> float:
    rate = number(value) if isinstance(value, str) else value
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < float(rate) <= 1:
        raise PrunescopeError(
            f"{where}={reprlib.repr(value)} is not a learning rate", hint="for example 1e-3"
        )
    return float(rate)


def _read_target(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value or not all(part for part in value.split("+")):
        raise PrunescopeError(
            f"{where}={reprlib.repr(value)} names nothing to train",
            hint=f"{', '.join(TARGETS)}, or roles joined by +, as q+v+down",
        )
    return value


def _read_file(where: str, value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise PrunescopeError(
            f"{where}={reprlib.repr(value)} is not a file", hint="a UTF-8 text of some pages"
        )
    return home_path(value)


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "steps": _read_count,
    "rank": _read_count,
    "lr": _read_rate,
    "batch": _read_count,
    "length": _read_count,
    "text": _read_file,
    "target": _read_target,
}
