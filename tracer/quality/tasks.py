"""Zero-shot tasks on the timed model, by lm-evaluation-harness (the optional extra `eval`).

In: a model, its tokenizer and a TaskList. Out: TaskScores for run.json, with the metrics and
standard errors of the harness (null if it gives none). A request gets the same answer, whatever is
asked next to it and before it. In decode scoring the context of a request fills the cache, and its
answer follows token by token.
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
from prunescope.taxonomy.runs.run_quality import TaskChange, TaskMetric, TaskScore, TaskSource
from prunescope.tracer.calibration.requests import decided_by_request
from prunescope.tracer.quality.quality import logits_by_token

# Requests in a forward of a model that decides nothing at run time. The harness pads them behind
# their last token, which none of their tokens sees: another number changes the rounding alone.
_BATCH = 8
_BOOTSTRAP_SAMPLES = 1000  # of the harness, for standard errors without a closed form
_Z95 = 1.96  # normal: tasks give standard errors and no values to resample (statistics.py)


@dataclass(frozen=True, kw_only=True)
class TaskList:
    """The names of tasks, and the folder that defines them; None means those of the harness."""

    names: tuple[str, ...]
    folder: Path | None = None

    def source(self) -> TaskSource:
        """Return the names, the folder, the sha256 of its files and the version of the harness."""
        digest = None if self.folder is None else _hash_folder(self.folder)
        folder = None if self.folder is None else self.folder.name
        version = importlib.metadata.version("lm_eval")
        return TaskSource(names=list(self.names), folder=folder, sha256=digest, lm_eval=version)


def check_installed() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        PrunescopeError: It is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise PrunescopeError(
            "tasks need lm-evaluation-harness, which is not installed",
            hint="pip install 'prunescope[eval]', or leave `tasks` out of the sweep file",
        )


def no_tokenizer() -> PrunescopeError:
    """Return the error that says that a model has no tokenizer to read tasks with."""
    return PrunescopeError(
        "tasks need a tokenizer, and this model has none", hint="leave `tasks` out"
    )


def score_tasks(
    model: Any,
    tokenizer: Any | None,
    tasks: TaskList,
    *,
    one_by_one: bool = False,
    scoring: str = "prefill",
) -> dict[str, TaskScore]:
    """Score a model on tasks.

    `TaskScore.metric` is the first metric that the file of the task names. No few-shot examples are
    added beyond those that the file asks for.

    Args:
        model: The model.
        tokenizer: The tokenizer of the model.
        tasks: The tasks.
        one_by_one: Whether each request is a forward of its own. A model that decides at run time
            needs it: it would rank padding, and neighbours in a batch, among a request's own
            tokens. Its random decisions follow from the tokens of the request.
        scoring: "prefill" reads a request in one forward. "decode" fills the cache with the
            context, which predicts the first token of the answer, and then reads the answer token
            by token.

    Returns:
        The score of each task by its name.

    Raises:
        PrunescopeError: The harness or a tokenizer is missing, or a task does not exist or has no
            data.
    """
    check_installed()
    if tokenizer is None:
        raise no_tokenizer()
    evaluator: Any = importlib.import_module("lm_eval.evaluator")
    manager: Any = importlib.import_module("lm_eval.tasks").TaskManager(
        include_path=None if tasks.folder is None else str(tasks.folder),
        # With a folder, names are looked up there alone: tasks of the harness would download data.
        include_defaults=tasks.folder is None,
    )
    huggingface: Any = importlib.import_module("lm_eval.models.huggingface")
    harness_class = _reading_by_token(huggingface.HFLM) if scoring == "decode" else huggingface.HFLM
    batch = 1 if one_by_one else _BATCH
    decided = decided_by_request(model) if one_by_one else contextlib.nullcontext()
    try:
        with _run_in(tasks.folder), decided:
            results = evaluator.simple_evaluate(
                model=harness_class(pretrained=model, tokenizer=tokenizer, batch_size=batch),
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
    return {name: _read_score(name, results) for name in tasks.names}


def _reading_by_token(harness_model: Any) -> Any:
    """Return a subclass of the harness's model class that reads answers token by token.

    Texts that the harness lets a model write are written token by token anyway.
    """

    class ReadByToken(harness_model):
        """A model that has read the context of a request when the answer begins."""

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            """Return ln p(answer | context), and whether each token is the most likely one.

            The harness calls this with (text, context, answer) of each request.
            """
            scores = []
            for text, context, answer in requests:
                scores.append(_log_likelihood(self.model, context, answer, self.max_length))
                if text is not None:  # a part of a longer text has none
                    self.cache_hook.add_partial("loglikelihood", text, scores[-1])
            return scores

    return ReadByToken


def _log_likelihood(
    model: Any, context: list[int], answer: list[int], longest: int
) -> tuple[float, bool]:
    """Return ln p of an answer, and whether all its tokens are the most likely ones.

    A context that is too long loses its beginning.
    """
    ids = torch.tensor([[*context, *answer][-(longest + 1) :]])
    ids = ids.to(model.get_input_embeddings().weight.device)
    targets = ids[0, -len(answer) :]
    with torch.inference_mode():
        logits = logits_by_token(model, ids, ids.shape[1] - len(answer)).float()
        log_p = -F.cross_entropy(logits, targets, reduction="sum")
    return float(log_p), bool((logits.argmax(-1) == targets).all())


def changes(dense: dict[str, TaskScore], pruned: dict[str, TaskScore]) -> TaskChange | None:
    """Return the two losses over tasks: the mean change, and the mean of absolute changes.

    The change of a task is (pruned − dense) / dense, with its sign turned if lower is better, so
    that values below zero are worse. The interval of the signed mean is normal, 1.96 standard
    errors. Dense and pruned count as independent, although they answer the same questions, so that
    the interval is rather too wide.

    Args:
        dense: The scores of the dense model by task.
        pruned: The scores of the pruned model on the same tasks.

    Returns:
        The changes; their interval is None without standard errors. None if a dense value is 0, a
        value is unknown or there are no tasks.
    """
    by_task: dict[str, float] = {}
    variances: list[float | None] = []
    for name, before in dense.items():
        after = pruned[name]
        d, p = before.value, after.value
        if not d or p is None:
            return None
        by_task[name] = (p - d) / d * (-1 if before.higher_is_better is False else 1)
        d_error, p_error = before.stderr, after.stderr
        if d_error is None or p_error is None:
            variances.append(None)
        else:
            variances.append((p_error / d) ** 2 + (p * d_error / d**2) ** 2)
    if not by_task:
        return None
    signed = sum(by_task.values()) / len(by_task)
    known = [variance for variance in variances if variance is not None]
    spread = None
    if len(known) == len(variances):
        spread = _Z95 * math.sqrt(sum(known)) / len(known)
    return TaskChange(
        signed=signed,
        signed_ci95=None if spread is None else [signed - spread, signed + spread],
        absolute=sum(map(abs, by_task.values())) / len(by_task),
        by_task=by_task,
    )


def _hash_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _run_in(folder: Path | None) -> Iterator[None]:
    """Run the harness in the folder of the tasks, as it looks for their data files there."""
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


def _read_score(name: str, results: dict[str, Any]) -> TaskScore:
    """Read the score of a task from the results of the harness, whose keys are "metric,filter"."""
    if name not in results["results"] or name not in results["configs"]:
        raise PrunescopeError(
            f"{name} is a group of tasks, which has no score of its own here",
            hint="list the tasks of the group one by one",
        )
    raw = results["results"][name]
    metrics: dict[str, TaskMetric] = {}
    for key, value in raw.items():
        metric, comma, kind = key.partition(",")
        if comma and kind == "none" and not metric.endswith("_stderr"):
            error = raw.get(f"{metric}_stderr,none")
            metrics[metric] = TaskMetric(value=_finite_number(value), stderr=_finite_number(error))
    better = results.get("higher_is_better", {}).get(name, {})
    listed = [m["metric"] for m in results["configs"][name].get("metric_list") or ()]
    first = next((m for m in (*listed, *metrics) if m in metrics), None)
    if first is None:
        raise PrunescopeError(f"{name} gave no metric", hint="name one in its metric_list")
    return TaskScore(
        metric=first,
        value=metrics[first].value,
        stderr=metrics[first].stderr,
        higher_is_better=better.get(first),
        samples=(results.get("n-samples", {}).get(name) or {}).get("effective"),
        version=results.get("versions", {}).get(name),
        metrics=metrics,
    )


def _finite_number(value: Any) -> float | None:
    """Return a finite number, or None: the harness writes "N/A" for unknown values."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
