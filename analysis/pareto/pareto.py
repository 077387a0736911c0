"""The command `prunescope pareto`: the folder of a sweep, judged.

In: the folder (sweep.json and its runs). Out: a Pareto. Each run is analysed as `prunescope
analyze` does it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prunescope.analysis.pareto.judged import judge_sweep
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.pareto import Pareto
from prunescope.taxonomy.runs.sweep_files import read_controls, read_sweep


def judge(folder: Path, on_result: Callable[[str], None] | None = None) -> Pareto:
    """Compare the results of a sweep that are done.

    Args:
        folder: The folder of the sweep.
        on_result: The function to call with the id of each result before it is analysed, or None.

    Returns:
        The comparison, without secrets and paths.

    Raises:
        PrunescopeError: There is no sweep, or no result is done.
    """
    return judge_sweep(
        folder,
        read_sweep(folder),
        tuple(read_controls(folder)),
        lambda path: analyze(path).report,
        on_result=on_result,
    )
