"""What is captured runs the ops of a plain loop: same ops, same shapes, same strides, in order.

Plain: `from_pretrained(...).eval()` in a loop under inference mode, with nothing of ours around it.
"""

from __future__ import annotations

import inspect
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, DynamicCache

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.tracer.capture.phases import DecodeLoop, Loop, PrefillLoop
from prunescope.tracer.capture.profiled import profile_loops
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.seatings import place
from prunescope.tracer.capture.variants import make_variants
from tests.tracer.tiny_models import TINY, tiny_model

pytestmark = pytest.mark.torch

CPU, LENGTH = torch.device("cpu"), 12
CACHES = ("past_key_values", "cache", "cache_params")  # as versions of transformers call it
QUICK = ("llama", "gemma3", "gpt2")
Op = tuple[str, str, str]
IDS = torch.randint(500, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))


def same(model: torch.nn.Module, sparsity: float) -> torch.nn.Module:  # noqa: ARG001
    """A method that does nothing."""
    return model


def ops_of(events: list[dict[str, Any]]) -> list[Op]:
    """(op, shapes, strides) of every op, in order of time, those that hold others first."""
    ops = [e for e in events if e.get("cat") == "cpu_op" and e["name"].startswith("aten::")]
    ops.sort(key=lambda e: (e["ts"], -e["dur"]))
    return [
        (e["name"], str(e["args"].get("Input Dims")), str(e["args"].get("Input Strides")))
        for e in ops
    ]


@torch.inference_mode()
def plain_ops(folder: Path, phase: str, logits: str, at: Path) -> list[Op]:
    """Of one forward of a plain loop."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    cache = DynamicCache(config=model.config)
    name = next(n for n in CACHES if _takes(model, n))
    options = {name: cache, "use_cache": True}
    options |= {"logits_to_keep": int(logits == "last")} if _takes(model, "logits_to_keep") else {}
    given = IDS[:, :LENGTH]
    if phase == "decode":
        model(input_ids=IDS[:, : LENGTH - 1], **options)
        model(input_ids=IDS[:, LENGTH - 1 : LENGTH], **options)
        given = IDS[:, LENGTH:]
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as session:
        model(input_ids=given, **options)
    session.export_chrome_trace(str(at))
    return ops_of(json.loads(at.read_text())["traceEvents"])


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(type(model).forward).parameters


def our_events(model: Any, phase: str, logits: str) -> list[dict[str, Any]]:
    """Of one profiled step, as a capture takes it: placed in memory, hooks, profiler and all."""
    place([model], random.Random(0))
    loop: Loop = PrefillLoop(model, IDS[:, :LENGTH], logits=logits)
    if phase == "decode":
        loop = DecodeLoop(model, IDS, prompt_len=LENGTH, logits=logits)
    with torch.inference_mode():
        session = profile_loops(
            {"one": loop}, [model], steps=range(1), device=CPU, advance=lambda: None
        )
    events: list[dict[str, Any]] = session.traces()["one"]["traceEvents"]
    return events


def made(folder: Path, **options: Any) -> dict[str, Any]:
    """Dense and pruned models as a capture has them."""
    request = TraceRequest(model=str(folder), out=folder / "out", prompt_len=LENGTH, **options)
    return {v.name: v for v in make_variants(request, CPU, ("dense", "pruned"))}


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in TINY if n not in QUICK)]
)
def test_dense_twins_and_untouched_models_run_the_ops_of_a_plain_loop(
    name: str, tmp_path: Path
) -> None:
    """In prefill and decode, with the logits of the last token and of all."""
    folder = tmp_path / "model"
    tiny_model(name).save_pretrained(folder)
    variants = made(folder, method=f"{__name__}:same")
    for phase in ("prefill", "decode"):
        for logits in ("last", "all"):
            plain = plain_ops(folder, phase, logits, tmp_path / "plain.json")
            assert len(plain) > 20
            for variant, made_one in variants.items():
                ours = ops_of(our_events(made_one.model, phase, logits))
                assert ours == plain, f"{variant}, {phase}, logits {logits}"


ATTENTION, MLP = r"self_attn\.\w+$", r"mlp\.\w+$"
AROUND = r"(lm_head|model\.norm|model\.embed_tokens)$"
NORMS = r"(input_layernorm|post_attention_layernorm)$"
# What a family leaves alone in a Llama, beside what lies around the layers; families that change
# the width or the length of the residual stream leave nothing.
UNTOUCHED: dict[str, tuple[str, ...]] = {
    "static-m": (ATTENTION, MLP, NORMS),
    "static-k-mask": (ATTENTION, MLP, NORMS),
    "static-nk": (NORMS,),
    "static-nk-mlp": (ATTENTION, NORMS),
    "static-nk-heads": (MLP, NORMS),
    "static-nk-channels": (ATTENTION, NORMS),
    "dynamic-width": (ATTENTION, NORMS),
}
STREAM = ("static-nk-cross", "static-k-cross", "token-drop")


def in_modules(events: list[dict[str, Any]], wanted: Callable[[str], bool]) -> Counter[Op]:
    """Ops inside modules of these names, layers without their numbers."""
    events = [e for e in events if e["ph"] == "X"]
    spans = [e for e in events if e["cat"] == "user_annotation" and wanted(e["name"])]
    found: Counter[Op] = Counter()
    for span in spans:
        end = span["ts"] + span["dur"]
        inside = [e for e in events if span["ts"] <= e["ts"] and e["ts"] + e["dur"] <= end]
        where = re.sub(r"layers\.\d+", "layers", span["name"])
        found.update((f"{where} {op}", dims, strides) for op, dims, strides in ops_of(inside))
    return found


def cases() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every family with what it leaves alone."""
    for one in families():
        if one.cuts and not one.theory_alone and one.id not in STREAM:
            yield one.id, (AROUND, *UNTOUCHED.get(one.id, ()))


@pytest.mark.parametrize(("family", "untouched"), list(cases()), ids=lambda v: str(v)[:20])
def test_what_a_family_leaves_alone_runs_as_before(
    family: str, untouched: tuple[str, ...], llama: Path
) -> None:
    """A step of each: of modules that stand in both, the same ops on the same shapes; a layer that
    is gone takes its share with it."""
    try:
        variants = made(llama, method=family, sparsity=0.5)
    except PrunescopeError as error:
        pytest.skip(f"not on this model: {error.problem}")
    for phase in ("prefill", "decode"):
        seen = {
            name: in_modules(
                our_events(one.model, phase, "last"),
                lambda scope: any(re.search(pattern, scope) for pattern in untouched),
            )
            for name, one in variants.items()
        }
        assert set(seen["pruned"]) <= set(seen["dense"]), family
        around = {op for op in seen["dense"] if re.match(AROUND.rstrip("$"), op[0])}
        assert around
        if family not in SKIPS_TOKENS:
            assert {op: seen["pruned"][op] for op in around} == {
                op: seen["dense"][op] for op in around
            }


SKIPS_TOKENS = {one.id for one in families() if getattr(one, "skips_tokens", False)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of four layers."""
    folder = tmp_path_factory.mktemp("llama") / "model"
    tiny_model("llama", num_hidden_layers=4).save_pretrained(folder)
    return folder
