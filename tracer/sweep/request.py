"""The options of `prunescope sweep`, without torch, because the command line imports them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.option import Engine, Option
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
