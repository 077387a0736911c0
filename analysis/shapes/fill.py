"""Shapes of GEMMs and attention from the model's config, where the trace did not record them.

In: the kernels frame with kinds, roles and calls, a `ModelConfig`. Out: `Filled`: the frame with
calls (and, where roles came from order, layers and roles) of the rows that the config explains,
their work, and what is to be said. Where the trace contradicts the config, nothing is filled.
"""

from __future__ import annotations

from dataclasses import replace

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.shapes.auto import guess
from prunescope.analysis.shapes.fitting import fitting_widths
from prunescope.analysis.shapes.grids import written
from prunescope.analysis.shapes.items import items_of
from prunescope.analysis.shapes.ranks import degrees
from prunescope.analysis.shapes.trial import Traced, Trial
from prunescope.analysis.shapes.values import AutoModel, Filled, ModelConfig
from prunescope.analysis.shapes.workload import GivenWorkload
from prunescope.analysis.shapes.writer import Writer
from prunescope.taxonomy.words import percent

_ENOUGH = 0.99  # of the GEMM time: so much of it recorded needs no config


def fill(traced: Traced, model: ModelConfig | AutoModel, device: Device | None) -> Filled:
    """Shapes of the rows that have none. Nothing changes where the trace recorded them all, holds
    no kernels, or contradicts the config; what is said tells which."""
    out = Filled(traced.frame, traced.source)
    if not traced.trace.on_device:
        out.warnings.append(
            f"--model {model.name} is not used: this is a CPU trace, and a config tells shapes to "
            "kernels of a GPU alone (record_shapes=True keeps those of a CPU's ops)"
        )
        return out
    steps = items_of(traced.frame, traced.trace, traced.works)
    every = [item for items in steps.values() for item in items]
    total = sum(item.ns for item in every)
    told = sum(item.ns for item in every if item.has_work)
    if not total or told >= _ENOUGH * total:
        out.notes.append(f"--model {model.name} is not needed: the trace has the shapes")
        return out
    if isinstance(model, AutoModel):
        out.warnings.append(guess(traced, model.workload, device, steps))
        return out
    if model.shape.mixer:
        steps = items_of(traced.frame, traced.trace, traced.works, mixers=True)
    degree = degrees(traced.trace, every, model.shape)
    tried = [Trial(traced, model, device, steps, ranks) for ranks in degree]
    fit = [one for one in tried if not one.problems]
    if len(fit) != 1:
        refused = _refused(model, tried, fit)
        bare = replace(model, workload=GivenWorkload())
        if not fit and model.workload != bare.workload:
            without = (Trial(traced, bare, device, steps, ranks) for ranks in degree)
            if not all(one.problems for one in without):
                refused += "; without the workload that was given nothing contradicts it"
        out.warnings.append(refused)
        return out
    return _filled(out, fit[0])


def _refused(model: ModelConfig, tried: list[Trial], fit: list[Trial]) -> str:
    begin = f"no shapes are taken from the config {model.name}"
    if fit:
        ranks = " or ".join(str(one.ranks) for one in fit)
        return (
            f"{begin}: the model may be shared out over {ranks} ranks, by all that the trace says"
        )
    if not tried:
        return f"{begin}: its dimensions cannot be shared out over the ranks of the trace"
    closest = min(tried, key=lambda one: (len(one.problems), one.ranks))
    return f"{begin}: {'; '.join(closest.problems)}"


def _filled(out: Filled, trial: Trial) -> Filled:
    """Give the rows their calls, layers and roles."""
    writer = Writer(trial, len(trial.traced.works))
    for key, assignment in trial.placed.items():
        writer.add(key, assignment)
    out.calls, out.works, out.known = writer.calls, writer.works, writer.known
    out.frame = writer.written(trial.traced.frame)
    out.warnings += list(dict.fromkeys(trial.warnings))
    out.source = "order" if trial.by_order else trial.traced.source
    rows = [trial.rows[key] for key in trial.placed]
    known = [m for m in rows if m is not None]
    steps = {step for step, _ in trial.placed}
    all_known = len(known) == len(rows) and not trial.apart
    out.tokens = sum(known) / len(steps) if all_known else None
    first = next(iter(trial.placed))
    heads = trial.tokens[first].heads
    widths = fitting_widths(trial.placed[first].gemms, trial.rows[first], trial.sm, heads=heads)
    if not writer.time:
        out.notes.append(f"--model {trial.model.name} tells no shapes that the trace lacks")
        return out
    out.notes += [_note(trial, writer), *widths]
    if trial.model.shape.experts and (told := trial.experts.told) is not None:
        (out.notes if trial.experts.slots else out.warnings).append(told)
    return out


def _note(trial: Trial, writer: Writer) -> str:
    share = writer.time / writer.total if writer.total else 0.0
    seen = {(trial.rows[step], trial.tokens[step].source) for step in trial.rows}
    rows = sorted({f"M = {m:,}" for m, _ in seen if m is not None})
    unknown = [written(trial.allowed[s]) for s, m in trial.rows.items() if m is None]
    if unknown:
        within = "" if unknown[0] == "any" else f", {unknown[0]} by the grids"
        rows.append(f"M is not known{within}")
    shared = f", on each of {trial.ranks} ranks" if trial.ranks > 1 else ""
    how = "aligned with its layers by order" if trial.by_order else "by module"
    return (
        f"shapes from the model's config ({trial.model.name}{shared}): {percent(share, 1)} of the "
        f"time of GEMMs and attention, {how}; {', '.join(rows[:4])}"
    )
