"""The table of repairs: what a finding advises, as a function of a model or a change of its call.

In: the id of a finding. Out: its repairs, with their text as code. The functions are in
tracer/repairs/plain, and only their text is read here, so that nobody needs torch to print it.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Literal

from msgspec import Struct

from prunescope.taxonomy.lazy_pattern import lazy_pattern

_PLAIN = "prunescope.tracer.repairs.plain"
_WORD = lazy_pattern(r"\w+")
_FOR_CHECKERS = lazy_pattern(r"  # (?:type: ignore|noqa)[^\n]*")


class Repair(Struct, frozen=True, kw_only=True):
    """One repair.

    Attributes:
        id: Its id, as `--only` takes it.
        does: What it does, as a phrase.
        findings: The ids of the findings that it is the repair of: a report prints its code.
        also: The ids of findings that may have its cause among others: `fix` tries it.
        of: What it changes: the model, or the call.
        function: The module in tracer/repairs/plain and the function; empty for a change of the
            call.
        promises: How far outputs may move: "rebuilt" (equal operations in other modules),
            "removed" (sums in another order), or "loss" (other numbers, whose loss is measured).
        call: The changed call, as code.
        only_if_found: Whether it is tried where one of its findings says so alone; else also
            where the model itself shows what it repairs.
    """

    id: str
    does: str
    findings: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    of: Literal["model", "call"] = "model"
    function: str = ""
    promises: Literal["rebuilt", "removed", "loss"] = "rebuilt"
    call: str = ""
    only_if_found: bool = False

    @property
    def advised_by(self) -> tuple[str, ...]:
        """The findings for which `fix` tries it, those that it is the repair of first."""
        return self.findings + self.also

    @property
    def module(self) -> str:
        """The dotted name of the module that holds the function."""
        return f"{_PLAIN}.{self.function.partition(':')[0]}"

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.partition(":")[2]


# In the order in which they are tried: what makes weights plain comes before what reads them.
REPAIRS = (
    Repair(
        id="evaluation-mode",
        does="leave training mode: no dropout, no recomputation",
        also=("recomputed-forward", "added-work"),
        function="settings:evaluate",
    ),
    Repair(
        id="remove-parametrisations",
        does="store the weights that parametrisations compute, and remove these",
        findings=("weights-recomputed", "added-mask"),
        also=("zeros-in-dense", "added-work"),
        function="weights:remove_parametrisations",
    ),
    Repair(
        id="bake-masks",
        does="multiply masks into the weights once, and remove what applies them",
        findings=("added-mask",),
        also=("weights-recomputed", "zeros-in-dense", "added-work"),
        function="weights:bake_masks",
    ),
    Repair(
        id="merge-adapters",
        does="add LoRA adapters to the weights that they adapt",
        findings=("added-adapter",),
        also=("added-work",),
        function="low_rank:merge_adapters",
        promises="removed",
    ),
    Repair(
        id="store-format",
        does="store weights in the format that their product reads",
        findings=("weight-copied", "decompressed"),
        also=("added-layout", "added-work"),
        function="weights:store_in_working_format",
    ),
    Repair(
        id="contiguous-weights",
        does="store weights that are strided views row after row",
        findings=("weight-copied",),
        also=("added-layout", "slower-kernels"),
        function="weights:make_contiguous",
    ),
    Repair(
        id="multiply-out",
        does="multiply out low ranks above their break-even",
        findings=("second-gemm",),
        also=("added-work",),
        function="low_rank:multiply_out",
        promises="removed",
    ),
    Repair(
        id="skip-sublayers",
        does="take sublayers whose output is zero out of the model",
        findings=("zeros-in-dense",),
        also=("skipped-layers-executed",),
        function="zeros:skip_zero_sublayers",
    ),
    Repair(
        id="cut-zeros",
        does="cut out channels and heads that are zero as a whole",
        findings=("zeros-in-dense",),
        function="zeros:cut_zeros",
        promises="removed",
    ),
    Repair(
        id="pad-dimensions",
        does="pad dimensions by zeros to the alignment that is fastest",
        findings=("unaligned", "unaligned-operands", "nearest-dimension"),
        also=("cuda-cores",),
        function="zeros:pad_dimensions",
        promises="removed",
        only_if_found=True,
    ),
    Repair(
        id="sdpa",
        does="compute attention by the fused kernel (eager → SDPA)",
        findings=("unfused-attention",),
        function="settings:use_sdpa",
        promises="removed",
    ),
    Repair(
        id="group-experts",
        does="multiply the experts of a layer as one grouped GEMM",
        findings=("experts-copied", "experts-on-all-tokens"),
        also=("routing-cost",),
        function="settings:group_experts",
        promises="removed",
        only_if_found=True,
    ),
    Repair(
        id="half-precision",
        does="convert the model to bfloat16",
        also=("cuda-cores", "reads-all-weights", "coverage-limited", "largest-cost"),
        function="lossy:use_half_precision",
        promises="loss",
    ),
    Repair(
        id="two-of-four",
        does="store 2:4 weights for sparse tensor cores",
        findings=("zeros-in-dense",),
        function="lossy:store_two_of_four",
        promises="loss",
    ),
    Repair(
        id="last-logits",
        does="compute the logits of the last position alone in prefill",
        also=("coverage-limited", "largest-cost"),
        of="call",
        call="model(input_ids, logits_to_keep=1)",
        promises="removed",
        only_if_found=True,
    ),
    Repair(
        id="no-hidden-states",
        does="return neither hidden states nor attentions",
        also=("unfused-attention", "largest-cost", "allocator-calls"),
        of="call",
        call="model(input_ids, output_hidden_states=False, output_attentions=False)",
        promises="removed",
    ),
    Repair(
        id="no-gradients",
        does="run without gradients",
        also=("allocator-calls", "launch-bound", "dispatch-bound"),
        of="call",
        call="with torch.inference_mode():\n    model(input_ids)",
    ),
    Repair(
        id="kv-cache",
        does="keep keys and values in a cache",
        also=("largest-cost",),
        of="call",
        call="model(input_ids, use_cache=True)",
        promises="removed",
    ),
    Repair(
        id="static-graphs",
        does="record the step as a graph over a static cache",
        also=("launch-bound",),
        of="call",
        call='model.generate(input_ids, cache_implementation="static")  # compiles the step',
        promises="removed",
        only_if_found=True,
    ),
    Repair(
        id="compile",
        does="compile the step",
        also=("launch-bound",),
        of="call",
        call="model = torch.compile(model)",
        promises="removed",
        only_if_found=True,
    ),
    Repair(
        id="threads",
        does="use one thread a physical core",
        also=("dispatch-bound", "interrupted-ops"),
        of="call",
        call="torch.set_num_threads({threads})",
        promises="removed",
        only_if_found=True,
    ),
)  # fmt: skip
BY_ID = {repair.id: repair for repair in REPAIRS}


def repairs_of(finding: str) -> list[Repair]:
    """Return what repairs the cause of a finding with equal outputs, in the order of the table."""
    return [r for r in REPAIRS if finding in r.findings and r.promises != "loss"]


def repairs_text(
    ids: Iterable[str],
    *,
    arguments: Mapping[str, str] | None = None,
    head: str = "Repairs of a model, in plain torch and transformers.",
    calls: Mapping[str, str] | None = None,
    skips: bool = False,
) -> str:
    """Return Python code whose `repair(model)` applies repairs in this order.

    Args:
        ids: Ids of repairs; those of the call become comments.
        arguments: Further arguments of their functions, as code, by id.
        head: The docstring.
        calls: The changed calls, as code, by id; without them, those of the table.
        skips: Whether repairs that find nothing to change are passed over; else they raise.
    """
    chosen = [BY_ID[id] for id in ids]
    of_model = [repair for repair in chosen if repair.of == "model"]
    texts, imports = _inlined({repair.module: None for repair in of_model})
    names = {repair.name for repair in of_model}
    wanted = names | {"DoesNotApply"} if of_model and skips else names
    used = _used(texts, wanted)
    words = set(_WORD.findall("\n".join(used)))
    lines = [f'"""{head}"""', ""]
    lines += ["from __future__ import annotations", ""]
    lines += _import_lines(imports, words)
    lines += [*used, "", "", "def repair(model):"]
    lines += ['    """Return the model with every repair applied, in this order."""']
    for repair in of_model:
        more = (arguments or {}).get(repair.id, "")
        lines += [f"    # {repair.does}", *_step(f"model = {repair.name}(model{more})", skips)]
    lines += ["    return model", "", ""]
    for repair in chosen:
        if repair.of == "call":
            code = (calls or {}).get(repair.id, repair.call)
            lines += [f"# Of the call: {repair.does}.", *(f"# {t}" for t in code.split("\n"))]
    return _FOR_CHECKERS.sub("", "\n".join(lines)).rstrip() + "\n"


def _step(line: str, skips: bool) -> list[str]:  # noqa: FBT001 - `_step(line, skips)` reads aloud
    """Return the lines of `repair` that apply one repair."""
    if not skips:
        return [f"    {line}"]
    return ["    try:", f"        {line}", "    except DoesNotApply:", "        pass"]


@cache
def _source(name: str) -> str:
    """Return the text of a module of ours."""
    package, _, module = name.rpartition(".")
    return resources.files(package).joinpath(f"{module}.py").read_text(encoding="utf-8")


def _import_lines(imports: set[tuple[str, str]], words: set[str]) -> list[str]:
    """Return the imports of the names that are among the words of a text, as code."""
    needed = sorted(pair for pair in imports if pair[1] in words)
    lines = [f"import {name}" for module, name in needed if not module]
    for module in dict.fromkeys(module for module, _ in needed if module):
        names = ", ".join(name for of, name in needed if of == module)
        lines.append(f"from {module} import {names}")
    return lines


def _inlined(modules: Collection[str]) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Return the definitions of modules of ours and of those they import, and other imports."""
    definitions: dict[str, str] = {}
    imports: set[tuple[str, str]] = set()
    done: set[str] = set()

    def add(name: str) -> None:
        if name in done:
            return
        done.add(name)
        source = _source(name)
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunescope."):
                add(str(node.module))
            elif isinstance(node, ast.Import):
                imports.update(("", alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                imports.update((str(node.module), alias.name) for alias in node.names)
            elif (defined := _defined(node)) is not None:
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
                definitions[defined] = "\n".join(source.splitlines()[first - 1 : node.end_lineno])

    for module in modules:
        add(module)
    return definitions, imports


def _defined(node: ast.stmt) -> str | None:
    """Return the name that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None


def _used(definitions: dict[str, str], wanted: Collection[str]) -> list[str]:
    """Return the definitions that some names need, in their order, as lines."""
    needed = set(wanted)
    left = set(needed)
    while left:
        used = {
            node.id
            for name in left
            for node in ast.walk(ast.parse(definitions[name]))
            if isinstance(node, ast.Name)
        }
        left = (used & definitions.keys()) - needed
        needed |= left
    lines: list[str] = []
    for name, text in definitions.items():
        if name in needed:
            is_block = text.startswith(("def", "class", "@"))
            lines += ["", "", text] if is_block else ["", text]
    return lines
