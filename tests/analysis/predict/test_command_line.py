"""An answer holds what was asked: every option, and a command that gives it again."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from typer.testing import CliRunner

from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.cli import app
from prunescope.taxonomy.errors import nearest
from prunescope.taxonomy.option import options_of
from prunescope.taxonomy.presets import nearest_presets, preset_named
from tests.analysis.predict.plain import predict


def ask(**options: Any) -> dict[str, Any]:
    given = {"model": "llama-3.1-8b", "device": "h100-sxm", "break_even": False}
    return predict(PredictRequest(**{**given, **options}))


def run(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*words, "--json", "-"])
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


@pytest.mark.parametrize(
    "words",
    ["--model llama-3.1-8b --device h100-sxm --method static-k-24 --sparsity 0.5 "
     "--set kernel=cusparselt --without added --without kernel --dtype fp8 --runtime vllm",
     "--model llama-3.2-1b --peak fp16=100 --peak bf16=100 --bandwidth 2000 --method "
     "static-nk,static-m --sparsity 0.25,0.5 --launch eager --host-us-per-op 12.5 --batch 4",
     "--model llama-3.2-1b --device l4 --method static-m --sparsity 0.25 --new-tokens 20 "
     "--chunk 128 --prompt-len 300 --extra-ms 3.5 --weights int4",
     "--model llama-3.2-1b --device l4 --rank --workload chat"],
)  # fmt: skip
def test_the_command_gives_the_same_answer(words: str) -> None:
    first = run("predict", *words.split())
    command = shlex.split(first["command"])
    assert command[:2] == ["prunescope", "predict"]
    assert run(*command[1:]) == first


def test_every_option_stands_in_the_json() -> None:
    found = ask(method="static-k-24", sparsity=0.5, knobs={"kernel": "cutlass"}, without=["added"])
    assert list(found["options"]) == [one.name for one in options_of(PredictRequest)]
    assert found["options"]["knobs"] == {"kernel": "cutlass"}
    assert found["options"]["without"] == ["added"]
    assert found["points"][0]["kernel"] == "cutlass"
    assert ask(method="static-nk")["points"][0]["kernel"] is None


def test_families_lists_the_knobs_that_predict_alone_has() -> None:
    told = run("families")["families"]
    knobs = {row["id"]: row["knobs"] for row in told}
    assert "cusparselt" in knobs["static-k-24"]["kernel"]["choices"]
    assert [name for name, found in knobs.items() if "kernel" in found] == ["static-k-24"]
    assert "kernel=torch|" in CliRunner().invoke(app, ["families"]).stdout


def test_a_method_named_decides_the_junctions_and_else_it_is_said() -> None:
    """Minitron cuts the hidden size by 6 % and has no residual GEMMs, SliceGPT has them."""
    options = {"sparsity": 0.0625, "phase": "prefill", "prompt_len": 2048}

    def flop(method: str) -> float:
        found = ask(method=method, **options)
        return float(found["phases"]["prefill"]["ladder"]["flop"])

    assert flop("minitron-hidden") == pytest.approx(flop("hidden pruning"))
    assert flop("minitron-hidden") > 1.05 > 1.0 > flop("slicegpt")
    assert ask(method="slicegpt", **options)["points"][0]["assumed"] == []
    (text,) = ask(method="static-nk-cross", **options)["points"][0]["assumed"]
    assert text.startswith("junctions=different") and "Minitron" in text


@pytest.mark.parametrize(
    ("name", "preset"),
    [("llama-3-8b", "llama-3.1-8b"), ("llama-7b", "llama-2-7b"), ("vicuna-13b", "llama-2-13b"),
     ("lmsys/vicuna-7b-v1.5", "llama-2-7b"), ("tinyllama", "tinyllama-1.1b"),
     ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
     ("deepseek-r1-distill-llama-8b", "llama-3.1-8b"), ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
     ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "qwen2.5-14b"), ("gemma-7b-it", "gemma-7b")],
)  # fmt: skip
def test_names_that_people_type(name: str, preset: str) -> None:
    assert preset_named(name) == preset


@pytest.mark.parametrize(
    ("name", "first"),
    [("qwen3-9b", "qwen3-8b"), ("gemma-3-9b", "gemma-2-9b"), ("phi-3.5-mini", "phi-3-mini"),
     ("llama-4-70b", "llama-2-70b"), ("Qwen/Qwen2.5-1B", "qwen2.5-1.5b")],
)  # fmt: skip
def test_a_hint_names_the_nearest_of_the_same_family_and_size(name: str, first: str) -> None:
    near = nearest_presets(name).split(", ")
    assert near[0] == first or first in near[:2]
    assert all(one.startswith(name.rpartition("/")[2][:3].lower()) for one in near)


def test_a_hint_names_no_preset_that_shares_letters_alone() -> None:
    assert nearest_presets("vit").startswith("none of ")
    assert nearest("vit", ["deepseek-v3", "gemma-7b", "llama-2-7b", "opt", "phi"]) == "none of 5"
    assert nearest("vit", ["mlp", "trace"]) == "mlp, trace"


@pytest.mark.parametrize(
    ("name", "first"),
    [("GraniteMoE", "granite-3.1-1b-a400m"), ("Qwen3MoE", "qwen3-30b-a3b"),
     ("DeepseekV3ForCausalLM", "deepseek-v3"), ("olmoe", "olmoe-1b-7b")],
)  # fmt: skip
def test_a_hint_names_the_presets_of_an_architecture(name: str, first: str) -> None:
    assert nearest_presets(name).split(", ")[0] == first
