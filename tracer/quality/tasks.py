"""Zero-shot tasks through lm-evaluation-harness, the optional extra `eval`, on the timed model.

In: a model, its tokenizer and a TaskList. Out: TaskScores for run.json; metrics as the harness
gives them, with its standard errors (null where it gives none). A request gets one answer, whatever
is asked next to it and before it. In decode scoring the context of a request fills the cache, and
its answer follows token by token.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run_quality import TaskChange, TaskMetric, TaskScore, TaskSource
from prunescope.tracer.calibration.requests import decided_by_request
from prunescope.tracer.quality.quality import logits_by_token

# Requests in a forward of a model that decides nothing at run time. The harness pads them behind
# their last token, which none of their tokens sees: another number changes the rounding alone.
_BATCH = 8
_BOOTSTRAP_SAMPLES = 1000  # of the harness, for standard errors without a closed form
_Z95 = 1.96  # normal: tasks give standard errors and no values to resample (statistics.py)


@dataclass(frozen=True, kw_only=True)
class TaskList:
    """Names of tasks, and the folder with their definitions; None: those of the harness."""

    names: tuple[str, ...]
    folder: Path | None = None

    def source(self) -> TaskSource:
        """The names, the folder and the sha256 of its files, and the version of the harness."""
        digest = None if self.folder is None else _digest(self.folder)
        folder = None if self.folder is None else self.folder.name
        version = importlib.metadata.version("lm_eval")
        return TaskSource(names=list(self.names), folder=folder, sha256=digest, lm_eval=version)


def check_installed() -> None:
    """Raises PrunescopeError if lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise PrunescopeError(
            "tasks need lm-evaluation-harness, which is not installed",
            hint="pip install 'prunescope[eval]', or leave `tasks` out of the sweep file",
        )


def score_tasks(
    model: Any,
    tokenizer: Any | None,
    tasks: TaskList,
    *,
    one_by_one: bool = False,
    scoring: str = "prefill",
) -> dict[str, TaskScore]:
    """The score of each task, by its name.

    `one_by_one`: a forward for each request, for a model that decides at run time: it would rank
    padding, and neighbours in a batch, among a request's own tokens. Its random decisions follow
    from the tokens of the request. `scoring`: "prefill" reads a request in one forward; "decode"
    fills the cache with its context, whose forward predicts the answer's first token, and then
    reads the answer token by token.

    "metric" is the first one that the task's own file names. No few-shot examples are added beyond
    those that the file asks for. Raises PrunescopeError where a task does not exist or has no data.
    """
    check_installed()
    if tokenizer is None:
        raise PrunescopeError(
            "tasks need a tokenizer, and this model has none", hint="leave `tasks` out"
        )
    evaluator: Any = importlib.import_module("lm_eval.evaluator")
    manager: Any = importlib.import_module("lm_eval.tasks").TaskManager(
        include_path=None if tasks.folder is None else str(tasks.folder),
        # With a folder, names are looked up there alone: tasks of the harness would download data.
        include_defaults=tasks.folder is None,
    )
    huggingface: Any = importlib.import_module("lm_eval.models.huggingface")
    asked = _read_by_token(huggingface.HFLM) if scoring == "decode" else huggingface.HFLM
    batch = 1 if one_by_one else _BATCH
    decided = decided_by_request(model) if one_by_one else contextlib.nullcontext()
    try:
        with _inside(tasks.folder), decided:
            found = evaluator.simple_evaluate(
                model=asked(pretrained=model, tokenizer=tokenizer, batch_size=batch),
                tasks=list(tasks.names),
                task_manager=manager,
                log_samples=False,
                bootstrap_iters=_BOOTSTRAP_SAMPLES,
            )
    except (KeyError, OSError, ValueError) as error:
        message = next(iter(str(error).strip().splitlines()), "")
        raise PrunescopeError(
            f"the tasks {', '.join(tasks.names)} cannot be run ({type(error).__name__}: {message})",
            hint="tasks_path names a folder of task files; paths of data in them begin there",
        ) from error
    return {name: _entry(name, found) for name in tasks.names}


def _read_by_token(harness_model: Any) -> Any:
    """The harness's class of models, changed so that it reads answers token by token. Texts that it
    lets a model write are written so anyway."""

    class ReadByToken(harness_model):
        """A model that has read the context of a request when the answer begins."""

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            """ln p(answer | context) of each (text, context, answer), and whether each of its
            tokens is the most likely one."""
            found = []
            for text, context, answer in requests:
                found.append(_log_likelihood(self.model, context, answer, self.max_length))
                if text is not None:  # a part of a longer text has none
                    self.cache_hook.add_partial("loglikelihood", text, found[-1])
            return found

    return ReadByToken


def _log_likelihood(
    model: Any, context: list[int], answer: list[int], longest: int
) -> tuple[float, bool]:
    """The log-likelihood of an answer's token ids; a context that is too long loses its
    beginning."""
    ids = torch.tensor([[*context, *answer][-(longest + 1) :]])
    ids = ids.to(model.get_input_embeddings().weight.device)
    targets = ids[0, -len(answer) :]
    with torch.inference_mode():
        logits = logits_by_token(model, ids, ids.shape[1] - len(answer)).float()
        log_p = -F.cross_entropy(logits, targets, reduction="sum")
    return float(log_p), bool((logits.argmax(-1) == targets).all())


def changes(dense: dict[str, TaskScore], pruned: dict[str, TaskScore]) -> TaskChange | None:
    """The two losses over tasks; None if a dense value is 0 or a value is unknown.

    change of a task = (pruned − dense) / dense, with its sign turned where lower is better, so that
    below zero is worse. "signed" = mean of the changes, "absolute" = mean of their absolute values.
    Interval of the signed one: normal, 1.96 standard errors, dense and pruned as if independent
    (they answer the same questions, so it is rather too wide); null without standard errors.
    """
    by_task: dict[str, float] = {}
    variances: list[float | None] = []
    for name, before in dense.items():
        after = pruned[name]
        d, p = before.value, after.value
        if not d or p is None:
            return None
        by_task[name] = (p - d) / d * (-1 if before.higher_is_better is False else 1)
        error, own = before.stderr, after.stderr
        variances.append(
            None if error is None or own is None else (own / d) ** 2 + (p * error / d**2) ** 2
        )
    if not by_task:
        return None
    signed = sum(by_task.values()) / len(by_task)
    known_variances = [v for v in variances if v is not None]
    spread = None
    if len(known_variances) == len(variances):
        spread = _Z95 * math.sqrt(sum(known_variances)) / len(variances)
    return TaskChange(
        signed=signed,
        signed_ci95=None if spread is None else [signed - spread, signed + spread],
        absolute=sum(map(abs, by_task.values())) / len(by_task),
        by_task=by_task,
    )


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _inside(folder: Path | None) -> Iterator[None]:
    """Run in the folder of the tasks: the harness looks for their data files there."""
    offline = {"HF_DATASETS_OFFLINE": "1"} if folder is not None else {}
    before = {name: os.environ.get(name) for name in (*offline, "TOKENIZERS_PARALLELISM")}
    os.environ.update(offline, TOKENIZERS_PARALLELISM="false")
    place = contextlib.nullcontext() if folder is None else contextlib.chdir(folder)
    try:
        # Hide progress bars and hints of four libraries; failures raise exceptions.
        with place, contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _entry(name: str, found: dict[str, Any]) -> TaskScore:
    """A task from the harness's results, whose keys are "metric,filter"."""
    if name not in found["results"] or name not in found["configs"]:
        raise PrunescopeError(
            f"{name} is a group of tasks, which has no score of its own here",
            hint="list the tasks of the group one by one",
        )
    raw = found["results"][name]
    metrics: dict[str, TaskMetric] = {}
    for key, value in raw.items():
        metric, comma, kind = key.partition(",")
        if comma and kind == "none" and not metric.endswith("_stderr"):
            error = raw.get(f"{metric}_stderr,none")
            metrics[metric] = TaskMetric(value=_number(value), stderr=_number(error))
    better = found.get("higher_is_better", {}).get(name, {})
    listed = [m["metric"] for m in found["configs"][name].get("metric_list") or ()]
    first = next((m for m in (*listed, *metrics) if m in metrics), None)
    if first is None:
        raise PrunescopeError(f"{name} gave no metric", hint="name one in its metric_list")
    return TaskScore(
        metric=first,
        value=metrics[first].value,
        stderr=metrics[first].stderr,
        higher_is_better=better.get(first),
        samples=(found.get("n-samples", {}).get(name) or {}).get("effective"),
        version=found.get("versions", {}).get(name),
        metrics=metrics,
    )


def _number(value: Any) -> float | None:
    """A finite number, or None: the harness writes "N/A" for unknown values."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
