"""The options of `prunescope gemm`.

torch is not imported here, because the command line imports this module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from prunescope.taxonomy.arguments import sizes
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.option import Option
from prunescope.taxonomy.replays import GemmCase
from prunescope.tracer.capture.progress import Progress
from prunescope.tracer.capture.request import Device, Placements, Repeats, Seed, Threads

Sizes = Sequence[int] | int | None
MOST_SHAPES = 1000
_SIZES = partial(Option, metavar="LIST", typed=str, parse=sizes)


@dataclass(frozen=True, kw_only=True)
class GemmRequest:
    """A run whose GEMMs are replayed, or the shapes themselves."""

    run: Annotated[
        Path | str | None,
        Option(
            help="Run whose GEMMs are replayed; without it, the shapes of --m, --n and --k.",
            metavar="RUN",
            argument=True,
        ),
    ] = field(default=None, kw_only=False)
    m: Annotated[
        Sizes,
        _SIZES(
            help="Rows of the GEMM (tokens): a number, a list as 1,8,64 or a range as 64:512:64."
        ),
    ] = None
    n: Annotated[
        Sizes,
        _SIZES(help="Output features, as --m; four or more with the same K make a curve over N."),
    ] = None
    k: Annotated[
        Sizes,
        _SIZES(help="Input features, as --m; four or more with the same N make a curve over K."),
    ] = None
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"],
        Option(help="Number format of the shapes given: fp32, bf16 or fp16; of a run, its own."),
    ] = "fp32"
    device: Device = "auto"
    warmup: Annotated[
        int,
        Option(
            help="Number of rounds that are dropped at the start of each placement.",
            unit="rounds",
            least=1,
            most=1000,
        ),
    ] = 2
    repeats: Repeats = 15
    placements: Placements = 5
    seed: Seed = 0
    threads: Threads = None
    script: Annotated[
        Path | str | None,
        Option(
            help="Folder to write a torch script for each GEMM to, which reproduces it without "
            "prunescope; without it, none.",
            metavar="DIR",
        ),
    ] = None
    progress: Progress | None = None

    def shapes(self) -> list[GemmCase]:
        """Return a case for every combination of --m, --n and --k; none where a run is given.

        Raises:
            PrunescopeError: Both a run and shapes are given, or neither, or a dimension is missing.
        """
        given = [_to_list(value) for value in (self.m, self.n, self.k)]
        if self.run is not None:
            if any(given):
                raise PrunescopeError(
                    "a run has shapes of its own: --m, --n and --k cannot be combined with it",
                    hint="remove one of them",
                )
            return []
        if not any(given):
            raise PrunescopeError(
                "no GEMM is given",
                hint="name a run, or a shape: --m 128 --n 384,400,512 --k 576",
            )
        if not all(given):
            raise _missing_dimension(dict(zip(("--m", "--n", "--k"), given, strict=True)))
        ms, ns, ks = given
        if len(ms) * len(ns) * len(ks) > MOST_SHAPES:
            raise PrunescopeError(
                f"--m, --n and --k make {len(ms) * len(ns) * len(ks):,} shapes",
                hint=f"{MOST_SHAPES:,} are the most",
            )
        return [
            GemmCase(pruned=Gemm(m, n, k), dtype=self.dtype) for m in ms for n in ns for k in ks
        ]


def _missing_dimension(given: dict[str, list[int]]) -> PrunescopeError:
    """Build an error that names the missing dimensions and completes the command by an example."""
    usual = {"--m": "128", "--n": "384,400,512", "--k": "576"}
    missing = [name for name, sizes in given.items() if not sizes]
    verb = "is" if len(missing) == 1 else "are"
    shown = (
        f"{name} {','.join(map(str, sizes[:3])) or usual[name]}" for name, sizes in given.items()
    )
    return PrunescopeError(
        f"a GEMM has three dimensions, and {' and '.join(missing)} {verb} missing",
        hint=f"for example: prunescope gemm {' '.join(shown)}",
    )


def _to_list(value: Sizes) -> list[int]:
    """Return the sizes as a list without duplicates; empty for None."""
    return (
        [] if value is None else [value] if isinstance(value, int) else list(dict.fromkeys(value))
    )
