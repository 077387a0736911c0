"""The request of `prunescope fix`: the options of `trace` that say what runs, and three of its own.

The module is light, because the command line imports it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.fixes import TRACE
from prunescope.taxonomy.method_names import run_name
from prunescope.taxonomy.option import (
    Batch,
    Knobs,
    Logits,
    Option,
    Phases,
    PromptLen,
    check_options,
    fill_missing,
)
from prunescope.taxonomy.repairs import BY_ID
from prunescope.tracer.capture.progress import Progress
from prunescope.tracer.capture.request import (
    Attn,
    Backend,
    BaselineModel,
    DecodeSteps,
    Device,
    Dtype,
    Method,
    Mode,
    Model,
    Placements,
    Repeats,
    Seed,
    Select,
    Sparsity,
    Steps,
    Text,
    Threads,
    TraceCall,
    Warmup,
)

_TRACED = 4  # placements of the trace that findings are read from
# A year of minutes; more is a typing error.
_MOST_MINUTES = 525_600


@dataclass(kw_only=True)
class FixRequest:
    """A model with what prunes it, how it runs, and which repairs are tried for how long."""

    model: Model = field(kw_only=False)
    method: Method = None
    sparsity: Sparsity = 0.25
    knobs: Knobs = field(default_factory=dict)
    baseline_model: BaselineModel = None
    phase: Phases = "both"
    batch: Batch = 1
    prompt_len: PromptLen = 512
    decode_steps: DecodeSteps = 8
    logits: Logits = "last"
    attn: Attn = "sdpa"
    dtype: Dtype = "auto"
    device: Device = "auto"
    select: Select = "random"
    text: Text = None
    backend: Backend = None
    mode: Mode = "eager"
    warmup: Warmup = 3
    repeats: Repeats = 20
    steps: Steps = 5
    placements: Placements = 8
    seed: Seed = 0
    threads: Threads = None
    only: Annotated[
        Sequence[str],
        Option(
            help="Repair to try, repeatable; without it, all that a finding or the model asks for.",
            metavar="ID",
            typed=list[str],
            parse=tuple,
            complete="repairs",
        ),
    ] = ()
    budget: Annotated[
        float | None,
        Option(
            help="Minutes after which nothing more is measured; without it, there is no limit.",
            metavar="MIN",
            least=0,
            most=_MOST_MINUTES,
        ),
    ] = None
    allow_loss: Annotated[
        bool,
        Option(
            help="Also try what changes numbers (bfloat16, 2:4 storage), and measure the loss; "
            "without it, outputs stay equal."
        ),
    ] = False
    out: Annotated[
        Path | str | None,
        Option(
            help="Folder for the trace, repairs.py and fix.json; without it, "
            "fixed/MODEL-METHOD-SPARSITY.",
            metavar="FOLDER",
        ),
    ] = None
    overwrite: Annotated[
        bool,
        Option(help="Begin anew if the folder exists; without it, the same request resumes."),
    ] = False

    def __post_init__(self) -> None:
        fill_missing(self)

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        if self.out is not None:
            return Path(self.out)
        return Path("fixed", run_name(self.model, self.method, self.sparsity))

    @property
    def traced(self) -> TraceCall:
        """The request of the trace that findings are read from."""
        own = {"only", "budget", "allow_loss", "out", "overwrite", "call", "progress"}
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        # Its samples say how long a step takes; what is proven is timed anew, with all of them.
        each = -(-self.repeats // max(1, min(self.placements, self.repeats)))
        options["placements"] = min(self.placements, _TRACED)
        options["repeats"] = min(self.repeats, each * options["placements"])
        return TraceCall(**options, out=self.folder / TRACE)

    def check(self) -> None:
        """Check the values of all options.

        Raises:
            PrunescopeError: A value is wrong; the first one is named.
        """
        check_options(self)
        for id in self.only:
            if id not in BY_ID:
                raise PrunescopeError(
                    f"there is no repair {id!r}", hint=f"nearest: {nearest(id, BY_ID)}"
                )
        if isinstance(self.model, str):
            self.traced.check()


@dataclass(kw_only=True)
class FixCall(FixRequest):
    """The arguments of `prunescope.fix`: a request, or a model and a callable of one's own."""

    model: Annotated[
        Any,
        Option(
            help="Model to run: a name as `trace` takes it, or a torch.nn.Module beside `call`.",
            metavar="MODEL",
            typed=str,
        ),
    ] = field(kw_only=False)
    call: Any = None  # (model) -> anything: one step of the model
    progress: Progress | None = None

    @property
    def folder(self) -> Path:
        """The folder of the result."""
        if self.out is None and not isinstance(self.model, str):
            return Path("fixed", type(self.model).__name__)
        return super().folder

    def check(self) -> None:
        """Check the values of all options.

        Raises:
            PrunescopeError: A value is wrong, or a model and its call do not come together.
        """
        is_named = isinstance(self.model, str)
        if is_named != (self.call is None) or not (self.call is None or callable(self.call)):
            raise PrunescopeError(
                "a model of one's own and `call` belong together",
                hint="prunescope.fix(model, call=lambda model: model(ids), out=...), or the name "
                "of a model without `call`",
            )
        super().check()
