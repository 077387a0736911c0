"""The check of a saved model: a new process loads it with transformers alone.

In: a folder, and the logits of the model in memory. Out: Checked, with the largest difference of
the logits and both numbers of parameters. The new process imports nothing of prunescope.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from prunescope.taxonomy.atomic_write import scratch_folder
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.words import whole_sentences

_TOKENS = 64
# Units in the last place of the largest logit that may differ: none is lost by storing, and a
# process of its own may add in another order, which float32 and float64 show.
_ULPS = {2: 1, 4: 16, 8: 16}
_SECONDS = 1800
_SCRIPT = r"""
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

folder, reference, device, attention, code, threads, adapter = sys.argv[1:8]
torch.set_num_threads(int(threads))
stored = load_file(reference)
model = AutoModelForCausalLM.from_pretrained(
    folder,
    dtype=stored["logits"].dtype,
    attn_implementation=attention,
    trust_remote_code=code == "code",
    local_files_only=True,
).eval().to(device)
count = sum(p.numel() for p in model.parameters())
if adapter:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, adapter).eval()
with torch.inference_mode():
    logits = model(stored["ids"].to(device), use_cache=False).logits.cpu()
same = logits.shape == stored["logits"].shape
difference = (logits.double() - stored["logits"].double()).abs().max() if same else torch.inf
print("\nCHECKED " + json.dumps({
    "difference": float(difference),
    "parameters": count,
    "alone": not any(name.split(".")[0] == "prunescope" for name in sys.modules),
}))
"""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the new process found.

    `difference`: the largest of the logits of 64 tokens; `largest`: the largest logit; `allowed`:
    the difference up to which they are the same.
    """

    difference: float
    largest: float
    allowed: float
    parameters: int

    @property
    def is_equal(self) -> bool:
        """Whether every logit is the same bit for bit."""
        return self.difference == 0


class Reference(Protocol):
    """Ids [1, 64] of the check, and the logits [1, 64, V] of a model."""

    @property
    def ids(self) -> torch.Tensor:
        """The ids."""

    @property
    def logits(self) -> torch.Tensor:
        """The logits."""


@torch.inference_mode()
def reference_logits(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids [1, 64] of the check, and the logits [1, 64, V] of the model in memory."""
    table = model.get_input_embeddings()
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    length = min(_TOKENS, longest) if isinstance(longest, int) and longest > 0 else _TOKENS
    ids = torch.arange(1, 1 + length)[None] * 7 % table.num_embeddings
    logits = model(ids.to(table.weight.device), use_cache=False).logits
    return ids, logits.detach().cpu().clone()


def check_saved(
    folder: Path, model: Any, *, with_code: bool, adapter: Reference | None = None
) -> Checked:
    """Load a saved model in a new process, and compare it with the one in memory.

    Args:
        folder: The folder that was written.
        model: The model that was saved.
        with_code: Whether the folder brings a modeling file.
        adapter: The logits with the adapter in the folder's adapter/; None: there is none.

    Returns:
        The numbers of the comparison.

    Raises:
        PrunescopeError: It does not load, or gives other logits, or has other parameters.
    """
    ids, logits = reference_logits(model) if adapter is None else (adapter.ids, adapter.logits)
    device = str(model.get_input_embeddings().weight.device)
    attention = str(getattr(model.config, "_attn_implementation", None) or "eager")
    with scratch_folder() as scratch:
        reference = scratch / "reference.safetensors"
        save_file({"ids": ids, "logits": logits.contiguous()}, reference)
        arguments = [
            str(folder),
            str(reference),
            device,
            attention,
            "code" if with_code else "plain",
        ]
        added = "" if adapter is None else str(folder / "adapter")
        checked_run = _run([*arguments, str(torch.get_num_threads()), added])
    largest = float(logits.abs().max())
    step = torch.finfo(logits.dtype).eps * 2.0 ** torch.tensor(largest).log2().floor().item()
    checked = Checked(
        difference=float(checked_run["difference"]),
        largest=largest,
        allowed=_ULPS[logits.element_size()] * step,
        parameters=int(checked_run["parameters"]),
    )
    expected = sum(p.numel() for p in model.parameters())
    if checked.parameters != expected or not checked_run["alone"]:
        raise PrunescopeError(
            f"the saved model has {checked.parameters:,} parameters, and the pruned one "
            f"{expected:,}",
            hint="nothing was saved; please report this model",
        )
    if not checked.difference <= checked.allowed:
        raise PrunescopeError(
            f"transformers alone gives other logits: they differ by {checked.difference:.2g}, and "
            f"{checked.allowed:.2g} is rounding",
            hint="nothing was saved: code that is no part of a checkpoint changes what this model "
            "computes",
        )
    return checked


def _run(arguments: list[str]) -> dict[str, Any]:
    """Run the check in a new process without network, and return what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PrunescopeError(
            "the saved model did not load within half an hour", hint="nothing was saved; try again"
        ) from None
    _, marker, text = done.stdout.rpartition("\nCHECKED ")
    if done.returncode or not marker:
        lines = done.stderr.strip().splitlines()
        reason = whole_sentences(lines[-1] if lines else f"exit code {done.returncode}")
        raise PrunescopeError(
            f"transformers alone does not load the saved model ({reason})",
            hint="nothing was saved",
        )
    values: dict[str, Any] = json.loads(text)
    return values
