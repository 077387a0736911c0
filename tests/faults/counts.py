"""How much was tried, computed from the tables of the tests; tests/README.md says the same."""

from __future__ import annotations

from tests.faults import hanging, test_commands, test_stranger, test_writing
from tests.faults.driver import POINTS
from tests.hostile import test_bundles, test_models
from tests.hostile.corpus import FULL, QUICK


def faults() -> int:
    """Processes and calls that were stopped: each has one assertion on what is left."""
    ways = len(test_commands.FAULTS)
    kills = 2 * len(POINTS) + 2 * len(test_writing.OVER) + len(test_commands.KILLS) + 2
    analyze = bundle = 3 * ways
    trace = len(test_commands.TestTrace.STAGES) * ways + ways + 1
    hangs = len(set(hanging.WAYS) - {"none"}) + 2  # and one that works in silence, one on ray
    disks = 4 + len(test_writing.ERRORS) + len(test_writing.UNWRITABLE)
    return kills + analyze + bundle + trace + ways + disks + hangs


def lines() -> list[str]:
    """The rows of the table in tests/README.md."""
    models = len(test_models.SIZES) * len(test_models.WRONG) + len(test_models.TEXTS)
    models += len(test_models.GGUF) + len(test_models.SWEEPS) + len(test_models.SAFETENSORS)
    asked = len(test_models.SIZES + test_models.EXPERTS) * len(test_models.WRONG)
    forged = len(test_bundles.CHANGES) + len(test_bundles.NAMES) + len(test_bundles.NO_ZIPS)
    odd, subjects = len(test_stranger.ODD), len(test_stranger.SUBJECTS)
    strange = odd * (subjects + 14) + len(test_stranger.NUMBERS) * 9 + 5 * 7
    return [
        f"| traces and runs given to `analyze` | {len(FULL):,} ({len(QUICK):,} in `make test`) |",
        f"| configs, checkpoints, GGUF and sweep files | {models + asked:,} |",
        f"| forged bundles given to `verify` | {forged:,} |",
        f"| odd words, numbers and places given to the commands | {strange:,} |",
        f"| faults injected | {faults():,} |",
    ]
