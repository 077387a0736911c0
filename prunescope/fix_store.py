"""The folder of a `fix`: whose it is, and the measurements that let the same request resume.

In: a folder and the fingerprint of a request. Out: stored trials.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from prunescope.taxonomy.atomic_write import write_file
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.fixes import FIXES, REPAIRS_FILE, TRACE, TRIALS, GainTrial, GainTrials
from prunescope.taxonomy.formats import decode, plain

_OWN = {FIXES, REPAIRS_FILE, TRACE, TRIALS}


@dataclass
class Store:
    """The measurements of a request in its folder, written as each is made."""

    path: Path
    trials: GainTrials

    @classmethod
    def open(cls, folder: Path, request: str, *, overwrite: bool) -> Self:
        """Make the folder of a request, or open that of an earlier run of it.

        Args:
            folder: The folder.
            request: The fingerprint of the request.
            overwrite: Whether an earlier result is removed.

        Raises:
            PrunescopeError: The folder holds another request, or something else.
        """
        path = folder / TRIALS
        entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if folder.exists() and (not folder.is_dir() or entries - _OWN or folder.is_symlink()):
            raise PrunescopeError(
                f"{folder} is not a folder that `prunescope fix` wrote", hint="choose another --out"
            )
        if overwrite:
            for entry in entries:
                target = folder / entry
                shutil.rmtree(target) if target.is_dir() else target.unlink()
        if path.is_file():
            trials = decode(path.read_bytes(), GainTrials, where=TRIALS, hint="add --overwrite")
            if trials.request != request:
                raise PrunescopeError(
                    f"{folder} holds the result of another request or of a model that has changed",
                    hint="choose another --out, or begin anew with --overwrite",
                )
            return cls(path, trials)
        folder.mkdir(parents=True, exist_ok=True)
        store = cls(path, GainTrials(request=request))
        store._write()
        return store

    def trial(self, name: str) -> GainTrial | None:
        """Return a stored measurement that is evidence; None: it is to be made."""
        trial = self.trials.trials.get(name)
        return None if trial is None or trial.disturbed_by else trial

    def keep(self, name: str, trial: GainTrial) -> None:
        """Store a measurement."""
        self.trials.trials[name] = trial
        self._write()

    def _write(self) -> None:
        write_file(self.path, msgspec.json.encode(plain(self.trials)))
