"""Roles by shapes and order, where modules leave them open or give them without evidence.

In: roles of rows in time order of their launch, kinds, and M, N, K of plain GEMMs (None: unknown).
Out: the roles, changed in place. lm_head stays only where N is a vocabulary, a fused QKV is
distinguished from the projection after attention, and an ungated `up` from a fused gate and up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np
from msgspec import Struct

from prunescope.analysis.ops.call import NoModel, OpCall, operands, tensor
from prunescope.analysis.ops.kernel_kinds import op_kind
from prunescope.analysis.ops.work import work_of
from prunescope.analysis.timeline.module_scopes import roles_by_number
from prunescope.analysis.trace.collector import Ints
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.roles import LINEARS, MLP_ROLES

Size = tuple[int, int, int]
_PARTS = ("attention", "mlp")
_IN_PARTS = (*LINEARS, "unknown")
_ADAPTED = 3  # products of a linear with an adapter: its own and two through a rank
_PLAIN = ("gemm", "gemv", "sparse_gemm")
_PRODUCTS = ("gemm", "gemv", "batched_gemm")
_ALL_PRODUCTS = ("gemm", "gemv", "sparse_gemm", "batched_gemm", "grouped_gemm")
_TABLE = 2  # times: a table has more elements than all else that a generated kernel reads
FAR = 4  # times: N of a vocabulary is larger than that of any other linear
_GENERATED = lazy_pattern(r"triton_(\w*embedding)?")
_INDICES = ("int32", "int64")
_TABLES = ("aten::embedding", "aten::embedding_bag", "aten::_embedding_bag")


class Roles(Struct, frozen=True):
    """The layers and roles of rows.

    Attributes:
        layer: The layer of each row; -1 where it belongs to none.
        role: The role of each row, one of prunescope.taxonomy.roles.ROLES.
        source: "modules", "nn.Module", "order" (from order and shape) or "none".
        confidence: Of the order, the share of what lies between two attentions that is alike.
    """

    layer: Ints
    role: list[str]
    source: str
    confidence: float = 1.0


class LaunchedRows(Struct, frozen=True):
    """Rows in the order of their launch; `of` makes them.

    Attributes:
        kinds: The kind of each row.
        calls: The op call of each row; None without one.
        sizes: M, N, K of each plain GEMM; None for other rows, and where no model knows them.
        vocabulary: The numbers of rows of the tables that tokens are looked up in.
        step: The step that each row is in.
        busy: The time of each row.
    """

    kinds: list[str]
    calls: list[OpCall | None]
    sizes: list[Size | None]
    vocabulary: set[int]
    step: Ints
    busy: Ints

    def multiplies_vocabulary(self, row: int) -> bool:
        """Return whether a row is a GEMM whose N is a vocabulary, as a head is."""
        size = self.sizes[row]
        return size is not None and size[1] in self.vocabulary

    @classmethod
    def of(
        cls,
        kinds: Sequence[str],
        calls: Sequence[OpCall | None],
        *,
        every: Iterable[OpCall] = (),
        step: Ints | None = None,
        busy: Ints | None = None,
    ) -> LaunchedRows:
        """Describe rows by their kinds and calls.

        Args:
            kinds: The kind of each row.
            calls: The op call of each row.
            every: All calls of the trace, those that launch nothing themselves too.
            step: The step that each row is in; None if all are in one.
            busy: The time of each row; None if all took the same.
        """
        return cls(
            list(kinds),
            list(calls),
            _sizes_of(kinds, calls),
            vocabularies({id(call): call for call in (*every, *calls)}.values()),
            np.zeros(len(kinds), np.int64) if step is None else step,
            np.ones(len(kinds), np.int64) if busy is None else busy,
        )


def _sizes_of(kinds: Sequence[str], calls: Sequence[OpCall | None]) -> list[Size | None]:
    """Return M, N, K of each plain GEMM; None for other rows, and where no model knows them."""
    known: dict[int, Size | None] = {}
    sizes: list[Size | None] = []
    for kind, call in zip(kinds, calls, strict=True):
        if call is None or kind not in _PLAIN:
            sizes.append(None)
            continue
        if id(call) not in known:
            work = work_of(call)
            gemm = None if work is None else work.single_gemm
            known[id(call)] = None if gemm is None or gemm.batch != 1 else (gemm.m, gemm.n, gemm.k)
        sizes.append(known[id(call)])
    return sizes


def vocabularies(calls: Iterable[OpCall | None]) -> set[int]:
    """Return the numbers of rows of the tables that tokens are looked up in.

    Those are the large tables; that of positions has fewer rows. A generated kernel's table is a
    matrix that is larger than all else that it reads; where its name does not say so, it looks up
    if it writes a row of the table for each of its indices.
    """
    tables: set[int] = set()
    for call in calls:
        generated = None if call is None else _GENERATED.match(call.name)
        if call is not None and generated is not None:
            tables |= _table_of(call, is_named=generated[1] is not None)
        elif call is not None and call.name in _TABLES:
            tables |= {*_matrix_sizes(call)[:1]}
    return {rows for rows in tables if FAR * rows >= max(tables)}


def with_embeddings(rows: LaunchedRows) -> list[str]:
    """Return the kinds, where rows of a table of tokens that are picked are an embedding.

    On a CPU that op does its work by another one, aten::index_select.
    """
    return [
        "embedding" if call is not None and _picks_tokens(call, rows.vocabulary) else kind
        for kind, call in zip(rows.kinds, rows.calls, strict=True)
    ]


def _picks_tokens(call: OpCall, vocabulary: set[int]) -> bool:
    table = call.shapes[0] if call.name == "aten::index_select" and call.shapes else ()
    return isinstance(table, tuple) and len(table) == 2 and table[0] in vocabulary


def _matrix_sizes(call: OpCall) -> tuple[int, ...]:
    """Return the sizes of a call's first operand; empty where that is no matrix."""
    try:
        return tensor(call, 0, rank=2).shape
    except NoModel:
        return ()


def _table_of(call: OpCall, *, is_named: bool) -> set[int]:
    """Return the rows of the table that a generated kernel reads; empty where it reads none."""
    try:
        tensors = sorted(operands(call), key=lambda t: t.numel)
    except NoModel:
        return set()
    *others, table = tensors
    alone = not others or table.numel > _TABLE * others[-1].numel
    if not alone or len(table.shape) != 2:
        return set()
    indices = {t.numel for t in others if t.dtype in _INDICES}
    looks_up = any(
        t.shape[-1:] == table.shape[1:] and t.numel // max(1, t.shape[-1]) in indices
        for t in others
        if t.dtype not in _INDICES
    )
    return {table.shape[0]} if is_named or looks_up else set()


def keep_heads(roles: Roles, rows: LaunchedRows, named: Sequence[bool]) -> None:
    """Take `lm_head` from rows whose module is not named so, unless their shape is a head's.

    N of a head is that of a token embedding, or far larger than N of any other linear in a model
    that has such an embedding.
    """
    role, sizes, vocabulary = roles.role, rows.sizes, rows.vocabulary
    others = [s[1] for r, s in zip(role, sizes, strict=True) if s is not None and r != "lm_head"]
    far = FAR * max(others, default=0)
    for i, given in enumerate(role):
        size = sizes[i]
        if given != "lm_head" or named[i]:
            continue
        is_head = size is not None and vocabulary and (size[1] in vocabulary or size[1] >= far > 0)
        role[i] = "lm_head" if is_head else "unknown"


def remove_heads_of_activations(
    roles: Roles, rows: LaunchedRows, scope_calls: Sequence[int]
) -> None:
    """Take `lm_head` from batched products of two activations, which are no product by a weight.

    The name of their module does not matter. Two of them around a softmax, in one call of a module
    (`scope_calls`) and one layer, are attention with what runs between them; one alone is unknown.
    """
    role, layer, kinds, calls = roles.role, roles.layer, rows.kinds, rows.calls
    known: dict[int, bool] = {}
    first, softmax = -1, False  # a product that awaits its second, and whether a softmax followed
    for i, given in enumerate(role):
        call = calls[i]
        if given != "lm_head":
            continue
        if kinds[i] == "softmax":
            softmax = True
        if call is None or kinds[i] not in _PRODUCTS:
            continue
        if id(call) not in known:
            known[id(call)] = _is_of_activations(call)
        if not known[id(call)]:
            first = -1
            continue
        role[i] = "unknown"
        here = (scope_calls[i], int(layer[i]))
        if first >= 0 and softmax and (scope_calls[first], int(layer[first])) == here:
            role[first] = role[i] = "attention"
            for j in range(first + 1, i):
                if role[j] == "lm_head":
                    role[j] = "attention"
            first = -1
        else:
            first, softmax = i, False


def _is_of_activations(call: OpCall) -> bool:
    """Return whether a call multiplies two batches of matrices, neither of which is broadcast."""
    work = work_of(call)
    gemm = None if work is None else work.single_gemm
    if gemm is None or gemm.batch <= 1:
        return False
    try:
        factors = [t for t in operands(call) if len(t.shape) > 2][-2:]
    except NoModel:
        return False
    return len(factors) == 2 and all(t.distinct == t.numel for t in factors)


def name_work_on_weights(roles: Roles, rows: LaunchedRows) -> None:
    """Give work on a weight alone the role of the product that reads the weight next in its layer.

    A mask that a hook multiplies in runs before the scope of the linear begins.
    """
    role, calls, sizes = roles.role, rows.calls, rows.sizes
    worked = [
        call
        for call in {id(c): c for c in calls if c is not None}.values()
        if op_kind(call.name, call) == "elementwise"
    ]
    shapes = {
        id(call): {tuple(s) for s in call.shapes if isinstance(s, tuple)} - {()} for call in worked
    }
    # Where hidden states have a batch, a matrix is none of them, as large as it may be.
    is_flat = not any(len(s) == 3 for seen in shapes.values() for s in seen)
    reads: dict[int, int] = {}  # by layer: the next product
    layers = roles.layer.tolist()
    for i in range(len(role) - 1, -1, -1):
        at = layers[i]
        if sizes[i] is not None:
            reads[at] = i
            continue
        seen = shapes.get(id(calls[i]), set())
        size = sizes[reads[at]] if at in reads else None
        if len(seen) == 1 and size is not None and role[i] != "unknown":
            m, n, k = size
            states = {(m, k), (m, n)} if is_flat else set()
            if seen <= {(n, k), (k, n)} - states:
                role[i] = role[reads[at]]


def name_residuals(roles: Roles, rows: LaunchedRows) -> None:
    """Set `residual` for a sum of two tensors of one shape behind the `down` of its layer.

    A class that holds both (ViTOutput, BloomMLP) adds what went around the MLP.
    """
    behind: set[int] = set()  # layers
    for i, (given, at) in enumerate(zip(roles.role, roles.layer.tolist(), strict=True)):
        if given == "down":
            behind.add(at)
        elif given in MLP_ROLES:
            behind.discard(at)
        elif given == "activation" and at in behind and is_sum(rows.calls[i]):
            roles.role[i] = "residual"


def is_sum(call: OpCall | None) -> bool:
    """Return whether a call adds two tensors of one shape."""
    if call is None or call.name not in ("aten::add", "aten::add_") or len(call.shapes) < 2:
        return False
    left, right = call.shapes[:2]
    return bool(left == right and left != ())


def mark_adapters(roles: Roles, rows: LaunchedRows) -> None:
    """Set `adapter` for two products through a rank that run next to a linear of the same sizes.

    The products are [T, K] → [T, r] → [T, N] next to [T, K] → [T, N]: an adapter that was not
    merged, whatever its class is called.
    """
    role, layer, sizes = roles.role, roles.layer, rows.sizes
    run: list[int] = []  # products in a row with the role of one linear

    def mark_run() -> None:
        for first in range(0, len(run) - len(run) % _ADAPTED, _ADAPTED):
            for i in _adapter_among(run[first : first + _ADAPTED], sizes):
                role[i] = "adapter"

    for i, given in enumerate(role):
        if sizes[i] is None:
            continue
        here = (int(layer[i]), given)
        if run and here != (int(layer[run[0]]), role[run[0]]):
            mark_run()
            run = []
        if given in LINEARS:
            run.append(i)
    mark_run()


def rename_adapted(roles: Roles, rows: LaunchedRows, parts: Mapping[int, str]) -> None:
    """Name the linears again in an attention or MLP that holds a linear and its adapter.

    There the number of linears in a module made q, k and v, or gate, up and down, of the three.
    Shapes show it: no q, k and v multiply through a rank. The linears that are left are named by
    their own number. `parts` gives the part of its layer that each product is in, by row in time
    order.
    """
    role = roles.role
    products = [i for i, part in parts.items() if part in _PARTS and role[i] in _IN_PARTS]
    for (_, part), group in groupby(products, key=lambda i: (int(roles.layer[i]), parts[i])):
        run = list(group)
        adapters = _adapters_by_number(run, role, roles_by_number(part, _ADAPTED), rows.sizes)
        if not adapters:
            continue
        linears = [i for i in run if i not in adapters]
        names = roles_by_number(part, len(linears)) or ("unknown",) * len(linears)
        for i, name in zip(linears, names, strict=True):
            role[i] = name
        for i in adapters:
            role[i] = "adapter"


def _adapters_by_number(
    run: list[int], role: list[str], names: tuple[str, ...], sizes: Sequence[Size | None]
) -> set[int]:
    """Return both products of each adapter among three in a row that have these names."""
    adapters: set[int] = set()
    for three in zip(run, run[1:], run[2:], strict=False):
        if tuple(role[i] for i in three) == names:
            adapters |= {*_adapter_among(three, sizes)}
    return adapters


def _adapter_among(three: Sequence[int], sizes: Sequence[Size | None]) -> tuple[int, ...]:
    """Return both products of an adapter before or behind its linear; empty without one."""
    a, b, c = three
    for down, up, whole in ((b, c, a), (a, b, c)):
        if is_adapter(sizes[whole], sizes[down], sizes[up]):
            return down, up
    return ()


def is_adapter(whole: Size | None, down: Size | None, up: Size | None) -> bool:
    """Return whether two GEMMs through a rank, `down` and `up`, read and make what `whole` does."""
    if whole is None or down is None or up is None or not is_through_rank(down, up):
        return False
    return whole == (down[0], up[1], down[2])


def last_head(gemms: Ints, rows: LaunchedRows) -> int | None:
    """Return the last of some GEMMs whose N is a vocabulary; None without one."""
    heads = [i for i in gemms.tolist() if rows.multiplies_vocabulary(i)]
    return heads[-1] if heads else None


_PICKS = (*_TABLES, "aten::index_select", "aten::index")


def name_tied_heads(roles: Roles, rows: LaunchedRows) -> None:
    """Set `lm_head` for a product by the matrix whose rows were picked as embeddings.

    Its N and K are those of the table, and it runs no more often than the table was read. Rows that
    are picked after the first product are tokens sent to experts, unless the op is an embedding's.
    """
    read: dict[tuple[int, ...], int] = defaultdict(int)
    role, multiplied = roles.role, False
    for kind, call in zip(rows.kinds, rows.calls, strict=True):
        multiplied = multiplied or kind in _PRODUCTS
        if call is None or call.name not in _PICKS or multiplied and call.name not in _TABLES:
            continue
        read[_matrix_sizes(call)] += 1
    by_table: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, size in enumerate(rows.sizes):
        if size is not None and size[1:] in read:
            by_table[size[1:]].append(i)
    for table, products in by_table.items():
        if len(products) <= read[table]:
            for i in products:
                role[i] = "lm_head" if role[i] == "unknown" else role[i]


def is_fused_qkv(size: Size | None) -> bool:
    """Return whether N = (1 + 2/g)·K: queries of width K, with keys and values of g heads.

    Limitations: A product that is no QKV may have such sizes by chance.
    """
    if size is None or not size[2] or size[1] <= size[2]:
        return False
    shared, remainder = divmod(2 * size[2], size[1] - size[2])
    return remainder == 0 and shared in (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


def is_through_rank(first: Size | None, second: Size | None) -> bool:
    """Return whether two GEMMs are [T, K] → [T, r] → [T, N] with a rank r below K and N."""
    if first is None or second is None:
        return False
    (rows, rank, k), (m, n, inner) = first, second
    return rows == m and rank == inner and rank < min(k, n)


def name_gated(roles: Roles, rows: LaunchedRows) -> None:
    """Name `up` and `gate_up` by the shapes of a layer.

    N of an ungated `up` is K of `down`; that of a fused gate and up is twice as large.
    """
    role, layer, sizes = roles.role, roles.layer, rows.sizes
    widths: dict[int, set[int]] = defaultdict(set)
    for i, given in enumerate(role):
        size = sizes[i]
        if given == "down" and size is not None:
            widths[int(layer[i])].add(size[2])
    with_gate = {int(layer[i]) for i, given in enumerate(role) if given == "gate"}
    for i, given in enumerate(role):
        size = sizes[i]
        if (
            given not in ("up", "gate_up")
            or size is None
            or (of_layer := int(layer[i])) in with_gate
        ):
            continue
        if size[1] in widths[of_layer]:
            role[i] = "up"
        elif any(size[1] == 2 * width for width in widths[of_layer]):
            role[i] = "gate_up"


def eager_attentions(kinds: Sequence[str], calls: Sequence[OpCall | None]) -> list[tuple[int, int]]:
    """Return the first and last row of each attention of separate ops: those of its two products.

    They multiply around a softmax, and their sizes fit: with S queries and L keys they are
    [b, S, d] x [b, d, L] and [b, S, L] x [b, L, d_v].
    """
    attentions: list[tuple[int, int]] = []
    first, scores, softmax = -1, None, False
    known: dict[int, Gemm | None] = {}
    for i, kind in enumerate(kinds):
        if kind == "softmax":
            softmax = True
            continue
        if kind not in _ALL_PRODUCTS:
            continue
        call = calls[i]
        if call is not None and call is calls[first] and first >= 0 and not softmax:
            continue  # a second kernel of the first product
        gemm = None
        if call is not None and kind == "batched_gemm":
            if id(call) not in known:
                known[id(call)] = _batched_product(call)
            gemm = known[id(call)]
        if softmax and scores is not None and gemm is not None and _reads(gemm, scores):
            attentions.append((first, i))
            first, scores, softmax = -1, None, False
        else:
            first, scores, softmax = i, gemm, False
    return attentions


def _reads(values: Gemm, scores: Gemm) -> bool:
    """Return whether the second product multiplies what the first one gave."""
    return (values.batch, values.m, values.k) == (scores.batch, scores.m, scores.n)


def _batched_product(call: OpCall) -> Gemm | None:
    work = work_of(call)
    gemm = None if work is None else work.single_gemm
    return gemm if gemm is not None and gemm.batch > 1 else None
