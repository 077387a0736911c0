"""The model card of a saved model: README.md, with a head that the hub reads.

In: Card, plain values. Out: Markdown. Every text from a file of others is one line without markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prunescope.taxonomy.engines import NAMES, EngineAnswer
from prunescope.taxonomy.runs.run_quality import Quality
from prunescope.taxonomy.scrub import scrub
from prunescope.taxonomy.words import percent, plural
from prunescope.tracer.export.checking import Checked

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_MOST_HEAD = 1 << 20
_SHOWN_LAYERS = 512


@dataclass(frozen=True, kw_only=True)
class PhaseSpeed:
    """The measured speed of a phase: dense time over pruned time, with an interval of 95 %.

    The interval is Student's t over placements; None for fewer than two of them.
    """

    phase: str
    dense_ms: float
    pruned_ms: float
    speedup: float
    ci95: tuple[float, float] | None
    placements: int
    workload: str
    trouble: str = ""  # why the times are no evidence


@dataclass(kw_only=True)
class Card:
    """What the model card says."""

    name: str
    base: str
    licence: str
    method: str
    sparsity: float | None
    parameters: tuple[int, int | None]  # of the pruned model, of the dense one
    layers: list[dict[str, Any]]  # what each layer has, by LayerShape's keys
    layer_map: list[int] | None
    checked: Checked
    kind: str
    versions: dict[str, str]
    engines: Sequence[EngineAnswer]
    tp: int = 1
    quality: Quality | None = None
    expected: dict[str, float] = field(default_factory=dict)  # by a plan, not measured
    speeds: list[PhaseSpeed] = field(default_factory=list)
    machine: str = ""
    command: str = ""
    notes: list[str] = field(default_factory=list)
    padded: dict[str, Any] | None = None
    weights: dict[str, str] = field(default_factory=dict)  # sha256 by file
    run: str = ""  # sha256 of run.json
    has_adapter: bool = False
    dense_layers: list[dict[str, Any]] = field(default_factory=list)


def base_licence(folder: Path | None) -> str:
    """Return the licence that the card of a base model names; "" if it names none."""
    readme = None if folder is None else folder / "README.md"
    if readme is None or not readme.is_file() or readme.stat().st_size > _MOST_HEAD:
        return ""
    head = re.match(r"---\s*\n(.*?)\n---", readme.read_text("utf-8", "replace"), re.DOTALL)
    try:
        values = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return ""
    licence = values.get("license") if isinstance(values, dict) else None
    return licence if isinstance(licence, str) and _LICENCE.fullmatch(licence) else ""


def _line(text: str) -> str:
    """Return a text as one line of Markdown without markup, secrets or paths."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(scrub(text).split()))


def render(card: Card) -> str:
    """Return the text of README.md."""
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": card.base,
        "license": card.licence or "unknown",
        "tags": ["pruned", "prunescope"],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n",
        f"# {_line(card.name)}\n",
        _opening(card),
        _section("What was removed", _removed(card)),
        _section("Loss", _loss(card)),
        _section("Speed", _speed(card)),
        _section("Loading", _loading(card)),
        _section("Engines", _engines(card)),
        _section("How it was made", _made(card)),
    ]
    return "\n".join(parts)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n"


def _opening(card: Card) -> str:
    now, before = card.parameters
    share = (
        ""
        if before is None
        else f", {percent(1 - now / before, 1)} fewer than the {before:,} before"
    )
    sparsity = "" if card.sparsity is None else f" at sparsity {card.sparsity:g}"
    return (
        f"{_line(card.base)}, pruned by {_line(card.method)}{sparsity}. It has {now:,} "
        f"parameters{share}.\n"
    )


def _removed(card: Card) -> str:
    """Return the table of what each layer has."""
    if not card.layers:
        return "The layers are those of the dense model.\n"
    keys = list(dict.fromkeys(key for layer in card.layers for key in layer))
    rows = [f"| layer | dense layer | {' | '.join(keys)} |", f"|{'---|' * (len(keys) + 2)}"]
    for number, layer in enumerate(card.layers[:_SHOWN_LAYERS]):
        origin = number if card.layer_map is None else card.layer_map[number]
        dense = card.dense_layers[origin] if origin < len(card.dense_layers) else {}
        cells = [_line(_shown_with_dense(layer.get(key, "none"), dense.get(key))) for key in keys]
        rows.append(f"| {number} | {origin} | {' | '.join(cells)} |")
    text = "\n".join(rows) + "\n"
    gone = len(card.dense_layers) - len(card.layers)
    if gone > 0:
        text += f"\n{gone} of {len(card.dense_layers)} layers were removed.\n"
    if card.padded and card.padded.get("parameters"):
        engine, tp, count = (card.padded[key] for key in ("engine", "tp", "parameters"))
        text += (
            f"\nLayers were padded with zeros to sizes that {NAMES[engine]} takes at tensor "
            f"parallelism {tp}: {count:,} parameters that add nothing"
        )
        for phase, (before, after) in (card.padded.get("ns") or {}).items():
            text += f"; {phase} took {after / 1e6:.4g} ms with them and {before / 1e6:.4g} without"
        text += ".\n"
    return text


def _shown_with_dense(value: Any, dense: Any) -> str:
    """Format what a layer has, with what the dense layer has where that differs."""
    return str(value) if dense is None or dense == value else f"{value} of {dense}"


def _loss(card: Card) -> str:
    quality = card.quality
    if quality is None or quality.perplexity is None:
        expected = card.expected.get("loss")
        if expected is None:
            return "Not measured.\n"
        return f"Expected by the plan, not measured: {expected:.4g} nats per token.\n"
    source = quality.text.source if quality.text is not None else None
    text = f"Perplexity {quality.perplexity:.4g}" + _interval(quality.perplexity_ci95)
    if quality.perplexity_rel is not None:
        text += f", {quality.perplexity_rel:+.2%} against the dense model"
        text += _interval(quality.perplexity_rel_ci95, percents=True)
    return (
        f"{text}, on {quality.scored_tokens:,} tokens of {_line(source or 'an unknown text')}. "
        "Intervals of 95 % are from a bootstrap over blocks of 128 tokens.\n"
    )


def _interval(ends: Any, *, percents: bool = False) -> str:
    if ends is None:
        return ""
    low, high = ends
    return f" ({low:+.2%} to {high:+.2%})" if percents else f" ({low:.4g} to {high:.4g})"


def _speed(card: Card) -> str:
    if not card.speeds:
        expected = card.expected.get("speedup")
        if expected is None:
            return "Not measured.\n"
        return f"Expected by the plan, not measured: {expected:.2f}×.\n"
    lines = []
    for speed in card.speeds:
        interval = _interval(speed.ci95) if speed.ci95 else " (no interval: one placement)"
        line = (
            f"- {speed.phase}: {speed.speedup:.3f}×{interval}; dense {speed.dense_ms:.4g} ms, "
            f"pruned {speed.pruned_ms:.4g} ms, {_line(speed.workload)}, {speed.placements} "
            f"placement{plural(speed.placements)}"
        )
        lines.append(
            line
            + (f". These times are no evidence: {_line(speed.trouble)}" if speed.trouble else "")
        )
    lines.append("")
    lines.append(
        f"Measured on {_line(card.machine)}, without a profiler, dense and pruned in turns. "
        "Intervals of 95 % are Student's t over random placements of the weights in memory.\n"
    )
    return "\n".join(lines)


def _loading(card: Card) -> str:
    trust = ", trust_remote_code=True" if card.kind == "code" else ""
    checked = card.checked
    same = (
        "gave the same logits, bit for bit"
        if checked.is_equal
        else f"gave the same logits within {checked.difference:.2g} (the largest is "
        f"{checked.largest:.4g}; {checked.allowed:.2g} is rounding of the format)"
    )
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    peft, added = "", ""
    if card.has_adapter:
        peft = "from peft import PeftModel\n"
        added = 'model = PeftModel.from_pretrained(model, "FOLDER/adapter")\n'
    return (
        f"```python\n{peft}from transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})\n{added}```\n\n'
        f"After saving, a new process loaded it with {versions} alone, and it {same}.\n"
    )


def _engines(card: Card) -> str:
    rows = ["| engine | runs it | why, or at what cost | read | source |", "|---|---|---|---|---|"]
    for answer in card.engines:
        runs = "yes" if answer.runs else "no"
        rows.append(
            f"| {NAMES[answer.engine]} | {runs} | {_line(answer.reason) or '–'} | "
            f"{answer.checked}, {answer.version} | {answer.source} |"
        )
    return (
        "\n".join(rows)
        + f"\n\nAt tensor parallelism {card.tp}. Yes: wherever the engine runs the dense model.\n"
    )


def _made(card: Card) -> str:
    lines = [f"```\n{scrub(card.command)}\n```\n"] if card.command else []
    lines += [f"- {_line(note)}" for note in card.notes]
    lines.append(f"- licence of the base model: {_line(card.licence or 'unknown')}")
    if card.run:
        lines.append(f"- sha256 of the run (run.json): {card.run}")
    lines += [f"- sha256 of {name}: {digest}" for name, digest in card.weights.items()]
    return "\n".join(lines) + "\n"
