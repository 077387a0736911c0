"""The options of `prunescope sweep`, without torch, because the command line imports them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import AllowCode, Engine, Option
from prunescope.tracer.capture.progress import Progress


@dataclass(kw_only=True)
class SweepRequest:
    """A sweep, or a part of one, and the folder that it fills."""

    config: Annotated[
        Path | str | Mapping[str, Any] | None,
        Option(
            help="Sweep file that names the model, the families and the sparsities; with --preset, "
            "the keys in which it differs from the preset.",
            metavar="CONFIG.yaml",
            argument=True,
        ),
    ] = field(default=None, kw_only=False)
    out: Annotated[
        Path | str | None,
        Option(
            help="Folder to write to: a new one, or that of a sweep to resume.", metavar="FOLDER"
        ),
    ] = None
    preset: Annotated[
        str | None,
        Option(
            help="Built-in sweep to run, such as paper, with the keys of a file in place of "
            "its own.",
            metavar="NAME",
        ),
    ] = None
    engine: Engine = "local"
    shard: Annotated[
        str | None,
        Option(
            help="Part I of N to run, counted from 0, to split a sweep over machines; without it, "
            "all of it.",
            metavar="I/N",
        ),
    ] = None
    budget: Annotated[
        float | None,
        Option(
            help="Estimated hours that this call may take; results that answer the paper's claims "
            "run first. Without it, all that is left runs.",
            metavar="HOURS",
            least=0,
        ),
    ] = None
    retry: Annotated[
        Literal["invalid"] | None,
        Option(
            help="Results to measure again: invalid, those that are done and whose times are not "
            "valid; without it, none.",
        ),
    ] = None
    progress: Progress | None = None
    argv: Sequence[str] = ()  # the command line, kept in run.json

    @property
    def folder(self) -> Path:
        """The folder of the sweep.

        Raises:
            PrunescopeError: No folder was named.
        """
        if self.out is None:
            raise PrunescopeError(
                "--out is missing", hint="name the folder to write to, as --out traces/sweep"
            )
        return Path(self.out)


@dataclass(kw_only=True)
class SavePoints:
    """The points of a sweep that become checkpoints."""

    save_model: Annotated[
        Sequence[str],
        Option(
            help="Point to save as a checkpoint that transformers loads alone, by its id in "
            "sweep.json, repeatable; without it, tables and figures alone.",
            metavar="POINT",
            typed=list[str],
        ),
    ] = ()
    models: Annotated[
        Path | None,
        Option(
            help="Folder for the saved points, each in a folder of its id; without it, "
            "FOLDER/models.",
            metavar="FOLDER",
        ),
    ] = None
    model: Annotated[
        str | None,
        Option(
            help="Dense model of the sweep, for --save-model; without it, what the sweep calls it.",
            metavar="MODEL",
            complete="models",
        ),
    ] = None
    text: Annotated[
        Path | None,
        Option(
            help="Text that the sweep read, for --save-model; without it, none.", metavar="FILE"
        ),
    ] = None
    allow_code: AllowCode = False

    def targets(self, folder: Path) -> dict[str, Path]:
        """Return the folder of each point, once it is known that it can be written.

        Raises:
            PrunescopeError: A folder holds something, or an option has no effect.
        """
        given = (self.models, self.model, self.text, self.allow_code or None)
        if not self.save_model and any(value is not None for value in given):
            raise PrunescopeError(
                "--models, --model, --text and --allow-code are for --save-model",
                hint="name a point with --save-model",
            )
        above = self.models or folder / "models"
        targets = {name: above / Path(name).name for name in self.save_model}
        if targets:
            from prunescope.tracer.export.checkpoint import check_target  # torch

            for target in targets.values():
                check_target(target)
        return targets


@dataclass(kw_only=True)
class SavePoint:
    """A point of a sweep that becomes a checkpoint.

    `model` and `text`: those of the sweep, whose folder holds no paths; None: the model by its
    name, and no text.
    """

    folder: Path | str
    point: str
    out: Path | str
    model: str | None = None
    text: Path | str | None = None
    allow_code: bool = False
    command: str = ""
