"""A pruning family: what it cuts, which axes of which GEMMs, on which architectures; its theory.

In: the constant FAMILY of one module in `taxonomy/families/`, which finds them. Out: Family. Other
code asks for these traits (`family.skips_tokens`, `family.scored_in`) and never for an id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.taxonomy.applies import Applies, everywhere, realised
from prunescope.taxonomy.architecture_traits import Traits
from prunescope.taxonomy.arguments import number, whole_number
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import ALIGN, ALIGNMENTS, check_sparsity
from prunescope.taxonomy.plan import Op, Plan, Workload
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.theory import dense_plan, forward, plans_of_parts

GEMM_GROUPS = ("qkv", "qk", "pv", "o", "gate_up", "down")
DYNAMICS = ("static", "dynamic")
CALIBRATIONS = ("text", "input")
# What families cut; one may cut something new. "weights" are zeros in tensors of the dense shape,
# 2:4 or anywhere.
UNITS = (
    "layers", "experts", "routes", "tokens", "keys", "blocks", "weights", "ranks", "heads",
    "channels", "stream",
)  # fmt: skip
SCORERS = ("", "router", "estimator")
MIXERS = ("", "rows", "stream")
Value = str | int | float | bool


def pattern(letters: str) -> dict[str, str]:
    """Assign axis letters to GEMM_GROUPS in order, "-" where nothing moves: "K - - K K K"."""
    return {
        group: ("none" if letter == "-" else letter)
        for group, letter in zip(GEMM_GROUPS, letters.split(), strict=True)
    }


class Knob(Struct, frozen=True):
    """An option of a family (`--set`): its default, its meaning, and its choices if they are few.

    `assumed`: what the default assumes, where published methods differ in it. `if_given`: a point
    holds it only if it is given, as in runs of versions without the knob. `predicted_only`: so too,
    and no pruner realises another value. `only_sizes`: it changes the sizes of dimensions and
    nothing else, so that points of equal dimensions are one model.
    """

    default: Value
    text: str
    choices: tuple[Value, ...] = ()
    assumed: str = ""
    if_given: bool = False
    predicted_only: bool = False
    only_sizes: bool = False


# The knob of every family that chooses the size of a dimension.
ALIGNMENT = Knob(
    ALIGN,
    "what kept dimensions are rounded up to: N: a multiple of N; just-N: a multiple of N and not "
    "of 2N; odd and even: just-1 and just-2; paper: 16",
    ALIGNMENTS,
    if_given=True,
    only_sizes=True,
)
# The knob of families that leave keys out.
FULL_HEADS = Knob(
    0.0, "share of the heads that read every key (DuoAttention), in predict", predicted_only=True
)


def recorded(_knobs: Mapping[str, Value]) -> str:
    """Return "" for `Family.unrecorded`: a graph can hold the steps at all knobs."""
    return ""


def unimplied(_shape: ModelShape, _knobs: Mapping[str, Value], _tokens: int) -> float | None:
    """Return None for `Family.implied_sparsity`: no knob gives a number of what is cut."""
    return None


class FamilyPoint(Struct, frozen=True, kw_only=True):
    """The request to a family: nominal sparsity s in [0, 1) and knobs by name.

    `removed`: the indices of removed layers, by what is removed of them ("layer", "attention",
    "mlp"), as a run recorded them.
    """

    sparsity: float
    knobs: Mapping[str, Value] = field(default_factory=dict)
    removed: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    @property
    def align(self) -> str:
        """The alignment that kept dimensions are rounded up to, one of `keep.ALIGNMENTS`."""
        return str(self.knobs.get("align", ALIGN))


# The ways to choose the parts to prune, and the names that versions before 0.2 wrote.
SELECTIONS = ("random", "importance", "greedy", "frequency")
OLD_SELECTIONS = {"calibrated": "importance"}


def read_selection(name: str) -> str:
    """Return today's name of a selection that a file or a run holds."""
    return OLD_SELECTIONS.get(name, name)


class Family(Struct, frozen=True, kw_only=True, eq=False):
    """One pruning family, equal to itself alone.

    `plans` turns a dense shape and a workload into what runs at a point.
    """

    id: str
    title: str
    dynamics: str
    axes: Mapping[str, str]  # GEMM group -> M N K G heads ... | none; G: groups of a grouped GEMM
    unit: str
    cuts: tuple[str, ...] = ()  # UNITS or another word; none: nothing is pruned
    methods: tuple[str, ...]
    plans: Callable[[ModelShape, Workload, FamilyPoint], list[Plan]]
    extension: bool = False  # placed by us, not by the paper
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    # The sparsity that knobs alone give, at a number of tokens; None: they leave it open.
    implied_sparsity: Callable[[ModelShape, Mapping[str, Value], int], float | None] = unimplied
    adds: tuple[str, ...] = ()  # kernels that only the pruned model runs
    keeps_weights: bool = False  # all dense weights stay in memory
    only: float | None = None  # the only sparsity other than 0
    check: Callable[[float], float] = check_sparsity  # refuses a sparsity that there is not
    # What `--select importance` measures: what the model does on a "text", or the attention of
    # the "input" itself, which reads none; None: parts can only be sampled.
    calibration: str | None = None
    greedy: bool = False  # parts can be chosen one by one, each by the loss without it
    applies: Callable[[Traits], Applies] = everywhere  # what the mechanisms of a model allow
    not_implemented: Callable[[Traits], str] = realised  # why the tool does not prune so, or ""
    predicted_only: bool = False  # nothing prunes so: no kernel that the tool could call does
    leaves: tuple[str, ...] = ()  # matrices that it does not move, in groups that it moves
    mixers: str = ""  # of a mixer's projections it moves all "rows", the "stream" side, or nothing
    # How quality is read, see taxonomy.scoring. In "decode" if its work starts with a cache that a
    # prompt filled: one forward of a text, with the logits of all its tokens, shows nothing of it.
    scored_in: str = "prefill"
    decoder_alone: bool = False  # an encoder beside the decoder stays as it is
    scorer: str = ""  # added to choose at run time: a "router", or attention's "estimator"
    routes_layers: bool = False  # each layer decides for itself, and may happen to skip nothing
    routes_rows: bool = False  # each row alone; the layer's k and v are computed for all rows
    without_sparse_units: str = ""  # the family that runs where a device has no units for 2:4
    # Of a dynamic family, by its knobs: why a graph cannot hold its steps, "" where it can (fixed
    # shapes, no decision of the host); None: no form of it can be recorded.
    unrecorded: Callable[[Mapping[str, Value]], str] | None = None

    @property
    def is_dynamic(self) -> bool:
        """Whether it decides for each input, at run time."""
        return self.dynamics == "dynamic"

    @property
    def skips_tokens(self) -> bool:
        """Whether tokens do not go through all of the model."""
        return "tokens" in self.cuts

    @property
    def skips_layers(self) -> bool:
        """Whether layers, or sublayers, do not run."""
        return "layers" in self.cuts

    @property
    def skips_blocks(self) -> bool:
        """Whether blocks of attention are left out."""
        return "blocks" in self.cuts

    @property
    def changes_experts(self) -> bool:
        """Whether there are fewer experts, or a token goes to fewer."""
        return "experts" in self.cuts or "routes" in self.cuts

    @property
    def cuts_heads(self) -> bool:
        """Whether there are fewer heads, each as large as before."""
        return "heads" in self.cuts

    @property
    def cuts_experts(self) -> bool:
        """Whether a mixture has fewer experts, which may be chosen by how often each is used."""
        return "experts" in self.cuts

    @property
    def zeroes_weights(self) -> bool:
        """Whether weights become zero and keep their place, so that no shape shows it."""
        return "weights" in self.cuts

    def not_recorded(self, knobs: Mapping[str, Value]) -> str:
        """Return why a graph cannot hold steps of this family at these knobs; "" if it can."""
        if not self.is_dynamic:
            return ""
        if self.unrecorded is None:
            return "it decides anew in every step, on the host"
        return self.unrecorded(self.point(0.0, knobs).knobs)

    def point(self, sparsity: float, knobs: Mapping[str, Value] | None = None) -> FamilyPoint:
        """Make a checked point with every knob filled in.

        Raises:
            PrunescopeError: The sparsity is outside [0, 1), a knob is unknown, or a choice is bad.
        """
        given = dict(knobs or {})
        for name, value in given.items():
            if name not in self.knobs:
                known = ", ".join(self.knobs) or "none"
                raise PrunescopeError(
                    f"{self.id} has no option {name!r}", hint=f"its options are: {known}"
                )
            given[name] = _typed(name, value, self.knobs[name])
        defaults = {
            name: knob.default
            for name, knob in self.knobs.items()
            if not (knob.if_given or knob.predicted_only)
        }
        return FamilyPoint(sparsity=sparsity, knobs={**defaults, **given})

    def theory(self, shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Op]:
        """Return the ops of one pruned forward, in order."""
        filled = self.point(point.sparsity, point.knobs)
        return forward(self.plans_of_model(shape, work, replace(filled, removed=point.removed)))

    def plans_of_model(self, shape: ModelShape, work: Workload, point: FamilyPoint) -> list[Plan]:
        """Return what runs at a point, of all parts of a model; see `theory.plans_of_parts`."""
        if not shape.parts:
            return self.plans(shape, work, point)

        def pruned(part: ModelShape, own: Workload) -> list[Plan]:
            return self.plans(part, own, point)

        def beside(part: ModelShape, own: Workload) -> list[Plan]:
            return pruned(part, own) if self.cuts_parts(point) else [dense_plan(part, own)]

        return plans_of_parts(shape, work, pruned, beside)

    def cuts_parts(self, point: FamilyPoint) -> bool:
        """Return whether an encoder beside the decoder is cut as the decoder is.

        Layers that a point names are the decoder's.
        """
        return not (self.decoder_alone or point.removed or point.knobs.get("layers"))

    def to_dict(self) -> dict[str, Any]:
        """Return the family as `families --json` prints it."""
        knobs = {
            name: {"default": k.default, "choices": list(k.choices), "text": k.text}
            for name, k in self.knobs.items()
        }
        return {
            "id": self.id,
            "title": self.title,
            "dynamics": self.dynamics,
            "axes": dict(self.axes),
            "unit": self.unit,
            "methods": list(self.methods),
            "extension": self.extension,
            "knobs": knobs,
            "adds": list(self.adds),
            "calibration": self.calibration,
        }


def identity(shape: ModelShape, work: Workload, _point: FamilyPoint) -> list[Plan]:
    """Return the dense forward, for a family that moves no dimension."""
    return [dense_plan(shape, work)]


def _number(text: str, kind: type) -> Value:
    """Convert a text to the type of a knob. Raise ValueError if it is not such a value."""
    value: Value | None = (
        whole_number(text) if kind is int else number(text) if kind is float else kind(text)
    )
    if value is None:
        raise ValueError
    return value


def _typed(name: str, value: Value, knob: Knob) -> Value:
    """Convert a value to the type of the knob's default, as the command line gives strings."""
    kind, bad = type(knob.default), f"option {name}={value!r}"
    typed: Value = value
    try:
        if kind is bool and isinstance(value, str):
            typed = {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        elif kind is not type(value):
            typed = _number(value, kind) if isinstance(value, str) else kind(value)
    except (ValueError, KeyError):
        raise PrunescopeError(f"{bad} is no {kind.__name__}", hint=knob.text) from None
    if knob.choices and typed not in knob.choices:
        raise PrunescopeError(
            f"{bad} is not a valid choice", hint=f"one of {', '.join(map(str, knob.choices))}"
        )
    return typed
