"""A pruned model that a result describes, and that is made when it is saved."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prunescope.taxonomy.errors import helpful
from prunescope.taxonomy.option import needed_path

if TYPE_CHECKING:
    from prunescope.tracer.capture.progress import Progress
    from prunescope.tracer.export.checkpoint import SavedModel


class PruneAndSave(Protocol):
    """What prunes a model and writes it into a folder."""

    def __call__(self, out: Path, progress: Progress, *, allow_code: bool) -> SavedModel:
        """Prune the model, write it, and load it again with transformers alone."""


@dataclass(frozen=True, kw_only=True)
class PrunedModel:
    """A pruned model by its name, and what saves it.

    Examples:
        >>> plan = prunescope.allocate("./SmolLM2", from_run="traces/dense", speedup=1.4)
        >>> plan.pruned_model().save("./pruned")
    """

    name: str
    prune_and_save: PruneAndSave

    @helpful
    def save(self, folder: Path | str, *, allow_code: bool = False) -> dict[str, Any]:
        """Prune the model and save it as a checkpoint that transformers loads alone.

        Args:
            folder: The folder, which does not exist or is empty.
            allow_code: Whether it may bring a modeling file.

        Returns:
            What was written and how it was checked: kind, bytes, parameters, digests, and the
            largest difference of logits.

        Raises:
            PrunescopeError: The folder holds something, the disk is full, or no checkpoint holds
                the model.
        """
        from prunescope.tracer.capture.progress import Bar, Silent

        target = needed_path(folder)
        if not sys.stderr.isatty():
            return self.prune_and_save(target, Silent(), allow_code=allow_code).record
        with Bar() as bar:
            return self.prune_and_save(target, bar, allow_code=allow_code).record
