"""`prunescope gemm`: GEMMs of a run, or shapes given, replayed alone and held against the report.

In: a GemmRequest. Out: Replays, and the analysis of the run that explains with them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from prunescope.analysis.replayed import cases_of, with_tiles
from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.option import as_path
from prunescope.taxonomy.replays import REPLAYS, Replays
from prunescope.taxonomy.runs.run import MANIFEST, Run, read_run
from prunescope.tracer.gemm.request import GemmRequest

if TYPE_CHECKING:
    from prunescope.analysis.pipeline import Analysis


def replay_request(request: GemmRequest) -> tuple[Replays, Analysis | None]:
    """Replay what a request asks for, and write RUN/gemms.json and scripts; None for shapes given.

    Raises PrunescopeError for a run without GEMMs that can be replayed.
    """
    cases, run = request.shapes(), as_path(request.run)
    from prunescope.tracer.gemm.replay import replay

    if run is None:
        replays = with_tiles(replay(cases, request))
        _write_scripts(replays, request)
        return replays, None
    from prunescope.analysis.inputs.options import Options
    from prunescope.analysis.pipeline import analyze

    before = analyze(run).report
    cases, left_out = cases_of(before)
    if not cases:
        raise PrunescopeError(
            f"{run.name} has no GEMM of a known shape to replay",
            hint="`prunescope trace` records shapes; or name one: --m 128 --n 384 --k 576",
        )
    threads = request.threads or _threads(run)
    replays = with_tiles(replay(cases, replace(request, threads=threads)))
    replays.left_out += left_out
    path = run / REPLAYS
    write_file(path, msgspec.json.format(msgspec.json.encode(plain(replays)), indent=1))
    _write_scripts(replays, request)
    return replays, analyze(run, options=Options(gemm=path))


def _threads(folder: Path) -> int | None:
    """The threads of the run, which are those of its GEMMs."""
    found: list[Run] = [
        read_run(one) for one in (folder, folder / "pruned") if (one / MANIFEST).is_file()
    ]
    device = found[0].device if found else None
    return device.threads if device is not None else None


def _write_scripts(replays: Replays, request: GemmRequest) -> None:
    folder = as_path(request.script)
    if folder is not None:
        from prunescope.tracer.gemm.script import write_scripts

        write_scripts(replays, folder)
