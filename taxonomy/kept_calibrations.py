"""The calibrations that this machine keeps, by the name of the device.

A file DEVICE.json in the user's cache gives a CalibratedDevice. torch is not imported here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import UnknownVersion, decode_file
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.runs.run_blocks import CalibratedDevice

_NOT_IN_SLUG = lazy_pattern(r"\((r|tm|c)\)|\b(processor|cpu)\b|@.*", re.IGNORECASE)


def cache_folder() -> Path:
    """Return the folder of downloaded models and measured peaks.

    It is $XDG_CACHE_HOME/prunescope, or ~/.cache/prunescope if that variable is not set.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "prunescope"


def slug(name: str) -> str:
    """Return the id of a device in the device table: "NVIDIA L4" becomes nvidia-l4."""
    return re.sub(r"[^a-z0-9]+", "-", _NOT_IN_SLUG.sub(" ", name).lower()).strip("-")


def calibration_path(name: str) -> Path:
    """Return the file of a device's calibration in the user's cache, by the device's id."""
    return cache_folder() / "devices" / f"{name}.json"


def newest_calibration(name: str) -> CalibratedDevice | None:
    """Return the newest calibration of a device that is kept.

    Args:
        name: The name of the device as torch gives it.

    Returns:
        The calibration, or None if there is none or it is damaged.

    Raises:
        UnknownVersion: A newer prunescope wrote the file.
    """
    path = calibration_path(slug(name))
    try:
        return decode_file(path, CalibratedDevice, where=str(path), hint="run calibrate again")
    except UnknownVersion:
        raise
    except (OSError, PrunescopeError):  # a damaged file counts as none
        return None
