"""The points of a request: its methods and sparsities, and options that contradict each other.

A PredictRequest, with names as people type them, "a,b" and "0.1:0.7:0.1", gives lists and labels,
or a PrunescopeError that names the options, before any work is done.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.analysis.predict.setting import find_named_family
from prunescope.analysis.shapes.named_model import read_model
from prunescope.taxonomy.arguments import number
from prunescope.taxonomy.engines import check_engine
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import check_sparsity
from prunescope.taxonomy.match import KNOB
from prunescope.taxonomy.method_names import is_function
from prunescope.taxonomy.option import options_of
from prunescope.taxonomy.plan import FORWARD, Workload
from prunescope.taxonomy.runs.run import Run
from prunescope.taxonomy.shape import ModelShape

_MAX_SPARSITIES = 100
_FORMS = "a share (0.5), several (0.25,0.5), or START:STOP:STEP (0.1:0.7:0.1, the stop included)"


def methods(given: str | Sequence[str] | None) -> list[str | None]:
    """Return the methods, in order, each once; [None] for the dense model alone."""
    if given is None:
        return [None]
    words = [given] if isinstance(given, str) else given
    names = [name.strip() for word in words for name in word.split(",")]
    return list(dict.fromkeys(name for name in names if name)) or [None]


def sparsities(given: float | str | Sequence[float] | None) -> list[float | None]:
    """Return the sparsities, ascending, each once; [None] for the method's default.

    Raises PrunescopeError where one is outside [0, 1), or the text has none of the three forms.
    """
    if given is None:
        return [None]
    if isinstance(given, int | float):
        return [check_sparsity(given)]
    values = _parse_grid(given) if isinstance(given, str) else [check_sparsity(s) for s in given]
    _check_grid(len(values))
    return [*sorted({check_sparsity(round(value, 9)) for value in values})]


def _check_grid(count: float) -> None:
    """Raise PrunescopeError for no sparsity, or too many for one call."""
    if not 0 < count <= _MAX_SPARSITIES:
        shown = f"{count:,.0f}" if count < 1e9 else "more than a billion"
        raise PrunescopeError(
            f"{shown} sparsities are no grid: one call takes 1 to {_MAX_SPARSITIES}",
            hint="use a larger STEP, or several calls; in Python a loop, "
            "[prunescope.predict(..., sparsity=s) for s in sparsities]",
        )


def _parse_grid(text: str) -> list[float]:
    """Return the sparsities of a text: a share, several, or START:STOP:STEP."""
    separator = ":" if ":" in text else ","
    words = text.split(separator)
    numbers = [value for word in words if (value := number(word)) is not None]
    if len(numbers) < len(words) or (separator == ":" and len(words) != 3):
        raise PrunescopeError(f"invalid sparsity {text[:80]!r}", hint=_FORMS)
    if separator == ",":
        return numbers
    start, stop, step = numbers
    if not (math.isfinite(start + stop) and 0 < step < math.inf and start <= stop):
        raise PrunescopeError(f"invalid range of sparsities {text[:80]!r}", hint=_FORMS)
    # A stop that is a whole number of steps away in decimal is included.
    steps = (stop - start) / step + 1e-9
    _check_grid(math.floor(steps) + 1 if steps < 1e9 else math.inf)
    return [start + i * step for i in range(math.floor(steps) + 1)]


def label_methods(
    names: Iterable[str | None], knobs: Mapping[str, Any], warnings: list[str]
) -> dict[str | None, str | None]:
    """Return the label of each method, in order.

    A label is the family's id, or the name where several methods of one family have different
    kernels. Methods with the same kernels are merged, with a warning. Raises PrunescopeError for an
    unknown name.
    """
    kept: dict[object, str | None] = {}
    for name in names:
        key = _kernel_key(name, knobs)
        if key in kept:
            warnings.append(
                f"{name} and {kept[key]} are {_family_id(name)} here: their kernels are the same"
            )
        kept.setdefault(key, name)
    ids = Counter(_family_id(name) for name in kept.values())
    return {
        name: _family_id(name) if ids[_family_id(name)] == 1 else name for name in kept.values()
    }


def check_knobs(
    knobs: Iterable[str], names: Iterable[str | None], *, with_match: bool = False
) -> None:
    """Raise PrunescopeError for a knob that none of the methods has.

    `with_match`: whether the sparsity of a family may be matched by what it removes.
    """
    names = list(names)
    whose = "none of these methods has an" if len(names) > 1 else f"{names[0] or 'dense'} has no"
    known = {
        knob for name in names if _is_family(name) for knob in find_named_family(str(name))[0].knobs
    }
    known |= {"kernel", KNOB} if with_match and any(map(_is_family, names)) else {"kernel"}
    for knob in knobs:
        if knob not in known:
            raise PrunescopeError(
                f"{whose} option {knob!r}", hint=f"known here: {', '.join(sorted(known))}"
            )


def _is_family(name: str | None) -> bool:
    """Return whether a name stands for a family, or for a method of one."""
    return name is not None and name != "dense" and not is_function(name)


def _family_id(name: str | None) -> str | None:
    """Return the id of a method's family; a name without a family stays as it is."""
    return find_named_family(str(name))[0].id if _is_family(name) else name


def _kernel_key(name: str | None, knobs: Mapping[str, Any]) -> object:
    """Return the key that two names with the same kernels share.

    It is the family with all of its knobs.
    """
    if not _is_family(name):
        return name
    family, method_knobs = find_named_family(str(name))
    given = {key: str(value) for key, value in {**method_knobs, **knobs}.items()}
    filled = {key: given.get(key, str(knob.default)) for key, knob in family.knobs.items()}
    return family.id, given.get("kernel"), tuple(sorted(filled.items()))


_DRAFTS = ("--draft-tokens", "--acceptance", "--draft-model")
_NOT_WITH_FROM_RUN = (*_DRAFTS, "--rank", "--workload", "--losses", "--loss",
                      "--new-tokens", "--pruned-batch", "--chunk", "--tp", "--pp", "--ep",
                      "--launch", "--attn", "--cache", "--kv-dtype",
                      "--host-us-per-op", "--weights", "--extra-ms", "--depth", "--legal",
                      "--legal-tp")  # fmt: skip
_NOT_WITH_PRUNED_MODEL = ("--method", "--sparsity", "--set", "--depth", "--out")
_NOT_WITH_RANK = (*_DRAFTS, "--pruned-model", "--method", "--phase", "--context", "--out",
                  "--pruned-batch", "--depth")  # fmt: skip
_OBJECTIVES = ("--ttft-ms", "--tpot-ms", "--latency-ms", "--throughput", "--arrivals")
_OF_RANK = ("--workload", "--losses", "--loss")
_SIZES = ("--batch", "--prompt-len", "--new-tokens")
_DEFAULT = PredictRequest()


def check_options(request: PredictRequest) -> None:
    """Raise PrunescopeError for an option that would be ignored, or contradicts another."""
    given = {
        option.flags[0]: getattr(request, option.name) != option.default
        for option in options_of(PredictRequest)
    }
    given["--out"] = request.curves

    def refuse(names: Iterable[str], why: str, hint: str = "remove one of them") -> None:
        """Raise PrunescopeError for the first of these options that was given."""
        for name in names:
            if given[name]:
                raise PrunescopeError(f"{name} {why}", hint=hint)

    if request.from_run is not None:
        refuse(_NOT_WITH_FROM_RUN, "cannot be combined with --from-run")
    elif request.rank:
        _check_rank(request, refuse)
    else:
        refuse(("--eager-trace",), "needs --from-run", "give the trace of a step with --from-run")
        refuse((*_OF_RANK, *_OBJECTIVES), "needs --rank", "add --rank")
        if request.new_tokens is None:
            refuse(("--pruned-batch",), "needs --new-tokens", "add --new-tokens N")
        if request.pruned_model is None and request.method is None:
            refuse(("--pruned-batch", "--depth"), "needs --method", "add --method")
        _check_drafts(request, refuse)
    _check_legal(request)
    if request.pruned_model is not None:
        refuse(_NOT_WITH_PRUNED_MODEL, "cannot be combined with --pruned-model")


_ACCEPTANCE = (
    "a number between 0 and 1 such as 0.7, or a range such as 0.6:0.8: what pruning does to it has "
    "to be measured"
)


def as_acceptance(given: float | str | Sequence[float] | None) -> tuple[float, float]:
    """Return the lowest and the highest share of drafted tokens that are accepted.

    `given` is a number, a text such as "0.6:0.8", or both ends. Raises PrunescopeError where one is
    not between 0 and 1.
    """
    words: list[Any] = [given]
    if isinstance(given, str):
        words = [number(word) for word in given.replace(",", ":").split(":")]
    elif isinstance(given, Sequence):
        words = list(given)
    ends = [end for end in words if isinstance(end, int | float) and 0 < end < 1]
    if not 1 <= len(ends) == len(words) <= 2:
        raise PrunescopeError(
            f"--acceptance {str(given)[:40]} is no share of drafted tokens",
            hint=_ACCEPTANCE,
        )
    return float(min(ends)), float(max(ends))


def _check_drafts(request: PredictRequest, refuse: Callable[..., None]) -> None:
    """Raise PrunescopeError for drafts that no pruned model makes, or that nothing verifies."""
    if request.draft_tokens is None:
        refuse(_DRAFTS, "needs --draft-tokens", "add --draft-tokens N, as many as a cycle drafts")
        return
    if request.acceptance is None:
        raise PrunescopeError("--draft-tokens needs --acceptance", hint=_ACCEPTANCE)
    if request.draft_tokens < 1:
        raise PrunescopeError(
            f"--draft-tokens {request.draft_tokens} drafts nothing", hint="a whole number from 1 on"
        )
    as_acceptance(request.acceptance)
    why = "cannot be combined with --draft-tokens"
    refuse(("--new-tokens", "--pruned-batch", "--chunk"), why, "drafts are of decode steps alone")
    if request.draft_model is not None:
        refuse(("--pruned-model", "--legal", "--legal-tp"), "cannot be combined with --draft-model")
    elif request.pruned_model is None and set(methods(request.method)) <= {None, "dense"}:
        raise PrunescopeError(
            "--draft-tokens needs a pruned model that drafts",
            hint="add --method, which prunes --model, or --draft-model",
        )
    if request.phase not in ("decode", "both"):
        raise PrunescopeError(
            f"--phase {request.phase} {why}", hint="--phase decode: tokens are drafted one by one"
        )


def _check_legal(request: PredictRequest) -> None:
    """Raise PrunescopeError for sizes of an engine where nothing is padded to them."""
    if request.legal is None:
        if request.legal_tp != 1:
            raise PrunescopeError("--legal-tp needs --legal", hint="add --legal vllm")
        return
    check_engine(request.legal)
    if not request.rank and request.method is None and request.pruned_model is None:
        raise PrunescopeError(
            "--legal needs --method", hint="only a pruned model is padded: add --method"
        )


def _check_rank(request: PredictRequest, refuse: Callable[..., None]) -> None:
    """Raise PrunescopeError for options that a ranking does not take, or lacks."""
    allowed = ("--method",) if request.has_objectives else ()
    refuse(
        [name for name in _NOT_WITH_RANK if name not in allowed], "cannot be combined with --rank"
    )
    if request.has_objectives:
        _check_objectives(request, refuse)
    else:
        refuse(("--arrivals",), "needs an objective", "add --ttft-ms or --tpot-ms")
    if request.workload is not None:
        refuse(_SIZES, f"cannot be combined with --workload {request.workload}, which sets it")


def _check_objectives(request: PredictRequest, refuse: Callable[..., None]) -> None:
    """Raise PrunescopeError for objectives that no batch can meet, or that lack a workload."""
    why = "is what objectives find"
    refuse(("--batch",), why, "remove it: each method gets the largest batch that meets them")
    refuse(("--losses", "--loss"), "cannot be combined with objectives")
    limits = {
        "--ttft-ms": request.ttft_ms, "--tpot-ms": request.tpot_ms,
        "--latency-ms": request.latency_ms, "--throughput": request.throughput,
    }  # fmt: skip
    for name, limit in limits.items():
        if limit is not None and not 0 < limit < math.inf:
            raise PrunescopeError(f"{name} {limit:g} is no limit", hint="give a number above 0")
    if request.workload is None and (request.new_tokens or 0) < 2:
        raise PrunescopeError(
            "objectives need the length of an answer", hint="add --new-tokens N, or --workload"
        )


def check_matches_run(request: PredictRequest, run: Run) -> None:
    """Raise PrunescopeError for sizes or a model other than those of the run."""
    sizes = {"batch": request.batch, "prompt_len": request.prompt_len, "logits": request.logits}
    context = {"context": request.context} if request.context is not None else {}
    for name, phase in run.phases.items():
        for field, value in {**sizes, **(context if name == "decode" else {})}.items():
            recorded = getattr(phase, field)
            default = getattr(_DEFAULT, field)
            if value not in (recorded, default) and request.phase in (name, "both"):
                option = f"--{field.replace('_', '-')}"
                raise PrunescopeError(
                    f"{option} {value} does not match this run: its {name} has {recorded}",
                    hint=f"remove {option}: the run records its sizes",
                )
    shape = ModelShape.from_run(run.model.shape)
    if request.model is None or shape is None:
        return
    if read_model(request.model).shape.parameters() != shape.parameters():
        raise PrunescopeError(
            f"--model {request.model} does not match this run of {run.model.id}",
            hint="remove --model: the run records its model",
        )


def replaced_sizes(request: PredictRequest, work: Workload, label: str) -> list[str]:
    """Return a warning for each size that was given and that the GEMMs of the trace contradict."""
    given = {"batch": request.batch, "prompt_len": request.prompt_len}
    measured = {"batch": work.batch, **({"prompt_len": work.prompt_len} if work.prefill else {})}
    return [
        f"{label}: the trace has {name.replace('_', ' ')} {size}, and --{name.replace('_', '-')} "
        f"{given[name]} is not used"
        for name, size in measured.items()
        if given[name] not in (size, getattr(_DEFAULT, name))
    ]


def sized_for_model(request: PredictRequest, shape: ModelShape) -> PredictRequest:
    """Return the request with the sizes that its model alone decides.

    It is one forward where the model decodes nothing. Its prompt is the tokens of an image where
    the model takes images. Raises PrunescopeError for what only a decoder has (a decode step, new
    tokens), and for one forward of a decoder.
    """
    if shape.parts:
        return _with_encoder(request, shape)
    if not shape.is_one_pass:
        if request.phase == FORWARD:
            raise PrunescopeError(
                "this model decodes tokens, so that its forwards are of two kinds",
                hint="--phase prefill, decode or both",
            )
        return request
    if request.phase == "decode" or request.new_tokens or request.context or request.draft_tokens:
        kind = "a vision transformer" if shape.image_tokens else "an encoder"
        raise PrunescopeError(
            f"{kind} decodes no tokens",
            hint="remove --new-tokens, --context and --draft-tokens; --phase forward is one pass",
        )
    if request.workload is not None:
        raise PrunescopeError(
            f"--workload {request.workload} is a prompt with its answer, and the model decodes "
            "nothing",
            hint="give --batch, the images or sequences at a time, in place of --workload",
        )
    phase = FORWARD if request.phase == FORWARD else "prefill"
    if not shape.image_tokens:
        return dataclasses.replace(request, phase=phase)
    if request.prompt_len not in (_DEFAULT.prompt_len, shape.image_tokens):
        raise PrunescopeError(
            f"an image is {shape.image_tokens} tokens to this model",
            hint="remove --prompt-len: image_size and patch_size of its config give it",
        )
    return dataclasses.replace(request, phase=phase, prompt_len=shape.image_tokens)


def _with_encoder(request: PredictRequest, shape: ModelShape) -> PredictRequest:
    """Return the request to a model whose prompt goes to an encoder.

    The keys of a decode step are those of the prompt and the decoder's own, one at least. Raises
    PrunescopeError for what only a prompt of a decoder can have, and for another prompt where the
    encoder always sees as many tokens.
    """
    given = [
        option
        for option, value in (
            ("--phase forward", request.phase == FORWARD),
            ("--chunk", request.chunk),
            ("--draft-tokens", request.draft_tokens),
            ("--pp", request.pp > 1),
            ("--ep", request.ep > 1),
            ("--routing", request.routing),
        )
        if value
    ]
    if given:
        raise PrunescopeError(
            f"{given[0]} is not modelled for an encoder and a decoder that attends to it",
            hint=f"remove {given[0]}: the encoder takes a prompt whole, the decoder a token a step",
        )
    tokens = shape.parts[-1].tokens
    if tokens and request.prompt_len not in (_DEFAULT.prompt_len, tokens):
        raise PrunescopeError(
            f"the encoder sees {tokens} tokens whatever its input is",
            hint="remove --prompt-len: max_source_positions of its config gives it",
        )
    prompt = tokens or request.prompt_len
    if request.context is not None and request.context <= prompt:
        raise PrunescopeError(
            f"--context {request.context} leaves the decoder no key: {prompt} are the encoder's",
            hint=f"--context counts both: give {prompt + 1} or more",
        )
    decodes = request.phase != "prefill"
    context = request.context or (prompt + 1 if decodes else None)
    return dataclasses.replace(request, prompt_len=prompt, context=context)
