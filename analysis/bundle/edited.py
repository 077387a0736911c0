"""The edited run.json or trace of a bundle whose checksums were computed again.

In: its files and runs. Out: reasons by file. Hashes of these files are in bundle.json, and in the
run.json that names a trace or a baseline. samples.csv and environment.json repeat what a run.json
says.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from prunescope.analysis.bundle.differences import difference
from prunescope.analysis.bundle.text import Runs, environment_json
from prunescope.taxonomy.runs.run import MANIFEST, Run

Files = Mapping[str, bytes]


def with_edited(
    files: Files, listed: Mapping[str, str], runs: Runs, failed: Mapping[str, str]
) -> dict[str, str]:
    """Return the failures with each edited file under runs/ before what follows from it.

    If no hash tells, and a report that does not follow from its run.json agrees with other files,
    the reason says so: either may be edited.

    Args:
        files: The files of the bundle.
        listed: The SHA-256 of each file that bundle.json lists.
        runs: The manifests by run and variant.
        failed: The failures by file.
    """
    edited: dict[str, str] = {}
    others = dict(failed)
    of_index = ((name, digest, "bundle.json") for name, digest in listed.items())
    for name, digest, where in (*of_index, *_manifest_checksums(runs)):
        if name in files and digest and hashlib.sha256(files[name]).hexdigest() != digest:
            edited.setdefault(name, f"edited: its SHA-256 is not the one in {where}")
    for run, variants in runs.items():
        report = f"reports/{run}/report.json"
        for variant, manifest in variants.items():
            name = f"runs/{run}/{variant}/{MANIFEST}"
            if name not in edited and report not in failed:
                continue
            text = _first_difference(files, run, variant, manifest)
            if text is not None and name in edited:
                edited[name] += f"; {text}"
            elif text is not None:
                others[report] += f"; {name} may be what was edited: {text}"
    both = {name: f"{others.pop(name)}; {why}" for name, why in edited.items() if name in others}
    return {**edited, **both, **others}


def _manifest_checksums(runs: Runs) -> Iterator[tuple[str, str | None, str]]:
    """Yield the checksums in a manifest: those of its traces, and of the dense manifest."""
    for run, variants in runs.items():
        for variant, manifest in variants.items():
            folder = f"runs/{run}/{variant}"
            for phase in manifest.phases.values():
                if phase.trace:
                    yield f"{folder}/{phase.trace}", phase.sha256, f"{variant}/{MANIFEST}"
            if manifest.twin is not None:
                yield f"runs/{run}/dense/{MANIFEST}", manifest.twin.sha256, f"{variant}/{MANIFEST}"


def _first_difference(files: Files, run: str, variant: str, manifest: Run) -> str | None:
    """Return the first sample, or setting of the device, in which other files differ."""
    for phase, entered in manifest.phases.items():
        listed = _samples(files, run, variant, phase)
        if listed is None:
            continue
        if len(listed) != len(entered.samples_ns):
            return f"{phase} has {len(entered.samples_ns)} samples, in samples.csv {len(listed)}"
        for i, (now, then) in enumerate(zip(entered.samples_ns, listed, strict=True)):
            if str(now) != then:
                return f"sample {i} of {phase} is {now} ns, in samples.csv {then[:20]}"
    listed_environment = _environment(files, run, variant)
    if listed_environment is None:
        return None
    current = json.loads(environment_json({run: {variant: manifest}}))[run][variant]
    text = difference(listed_environment, current, where="")
    return None if text is None else f"in environment.json and here, {text.lstrip('.')}"


def _samples(files: Files, run: str, variant: str, phase: str) -> list[str] | None:
    """Return the samples of samples.csv; None if it cannot be read."""
    try:
        rows = list(csv.reader(io.StringIO(files["samples.csv"].decode("utf-8", "replace"))))
    except (KeyError, csv.Error):
        return None
    return [row[4] for row in rows if len(row) == 5 and row[:3] == [run, variant, phase]]


def _environment(files: Files, run: str, variant: str) -> Any:
    """Return the entry of environment.json for a side; None if it cannot be read."""
    try:
        return json.loads(files["environment.json"])[run][variant]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
