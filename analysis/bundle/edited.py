"""Find the edited run.json or trace of a bundle, where the checksums were recomputed: in, its files
and runs; out, reasons by file. Hashes of them stand in bundle.json and in the run.json that names a
trace or a baseline; samples.csv and environment.json repeat what a run.json says."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from prunescope.analysis.bundle.differences import difference
from prunescope.analysis.bundle.text import Runs, environment_json
from prunescope.taxonomy.run import MANIFEST, Run

Files = Mapping[str, bytes]


def with_edited(
    files: Files, inputs: Mapping[str, str], runs: Runs, failed: Mapping[str, str]
) -> dict[str, str]:
    """`failed` with each edited file under runs/ before what follows from it, and why. `inputs`:
    the SHA-256 that bundle.json has of each. Where no hash tells, and a report that does not follow
    from its run.json agrees with other files, its reason says so: either may be edited."""
    edited: dict[str, str] = {}
    other = dict(failed)
    of_index = ((name, digest, "bundle.json") for name, digest in inputs.items())
    for name, digest, where in (*of_index, *_of_runs(runs)):
        if name in files and digest and hashlib.sha256(files[name]).hexdigest() != digest:
            edited.setdefault(name, f"edited: its SHA-256 is not the one in {where}")
    for run, variants in runs.items():
        report = f"reports/{run}/report.json"
        for variant, manifest in variants.items():
            name = f"runs/{run}/{variant}/{MANIFEST}"
            if name not in edited and report not in failed:
                continue
            what = _differs(files, run, variant, manifest)
            if what is not None and name in edited:
                edited[name] += f"; {what}"
            elif what is not None:
                other[report] += f"; {name} may be what was edited: {what}"
    both = {name: f"{other.pop(name)}; {why}" for name, why in edited.items() if name in other}
    return {**edited, **both, **other}


def _of_runs(runs: Runs) -> Iterator[tuple[str, str | None, str]]:
    """The checksums in a manifest: of its traces, and of the dense manifest."""
    for run, variants in runs.items():
        for variant, manifest in variants.items():
            folder = f"runs/{run}/{variant}"
            for phase in manifest.phases.values():
                if phase.trace:
                    yield f"{folder}/{phase.trace}", phase.sha256, f"{variant}/{MANIFEST}"
            if manifest.twin is not None:
                yield f"runs/{run}/dense/{MANIFEST}", manifest.twin.sha256, f"{variant}/{MANIFEST}"


def _differs(files: Files, run: str, variant: str, manifest: Run) -> str | None:
    """The first sample, or setting of the device, that other files of the bundle have otherwise."""
    for phase, entered in manifest.phases.items():
        listed = _samples(files, run, variant, phase)
        if listed is None:
            continue
        if len(listed) != len(entered.samples_ns):
            return f"{phase} has {len(entered.samples_ns)} samples, in samples.csv {len(listed)}"
        for i, (now, then) in enumerate(zip(entered.samples_ns, listed, strict=True)):
            if str(now) != then:
                return f"sample {i} of {phase} is {now} ns, in samples.csv {then[:20]}"
    found = _environment(files, run, variant)
    now = json.loads(environment_json({run: {variant: manifest}}))[run][variant]
    if found is None or (what := difference(found, now, frozenset(), where="")) is None:
        return None
    return f"in environment.json and here, {what.lstrip('.')}"


def _samples(files: Files, run: str, variant: str, phase: str) -> list[str] | None:
    """The samples of samples.csv; None where it cannot be read."""
    try:
        rows = list(csv.reader(io.StringIO(files["samples.csv"].decode("utf-8", "replace"))))
    except (KeyError, csv.Error):
        return None
    return [row[4] for row in rows if len(row) == 5 and row[:3] == [run, variant, phase]]


def _environment(files: Files, run: str, variant: str) -> Any:
    """The entry of environment.json for a side; None where it cannot be read."""
    try:
        return json.loads(files["environment.json"])[run][variant]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
