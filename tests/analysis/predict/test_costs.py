"""The prices of a forward, summed op by op and all at once."""

from __future__ import annotations

import pytest

from prunescope.analysis.predict.constants import DEFAULT, ends
from prunescope.analysis.predict.costs import NAMES, bill
from prunescope.analysis.predict.kernels import PriceTable, price_ns, rates
from prunescope.analysis.predict.setting import PredictRequest, resolve, workloads


@pytest.mark.parametrize("launch", ["graph", "eager"])
@pytest.mark.parametrize("device", ["h100-sxm", "a100-80gb-sxm", "mi300x"])
@pytest.mark.parametrize(
    "method", ["static-nk", "static-k-24", "dynamic-m", "dynamic-nk", "token-drop"]
)
def test_all_at_once_is_one_after_the_other(method: str, device: str, launch: str) -> None:
    request = PredictRequest(model="llama-3.2-1b", device=device, batch=3, launch=launch)
    setting, _ = resolve(request, method, None, [])
    every = frozenset(NAMES)
    cases = [(end, every) for _, *both in ends(every, setting.device) for end in both]
    cases += [(DEFAULT, frozenset(NAMES[:count])) for count in range(len(NAMES) + 1)]
    for work in workloads(request, setting):
        one = bill(setting.side(work))
        at = [rates(setting, *case) for case in cases]
        plain = [sum(p.layers * price_ns(p, r) for p in one.prices) for r in at]
        assert PriceTable(one.prices).totals_ns(at) == pytest.approx(plain, rel=1e-14)
        one.memo.clear()
        alone = [one.total_ns(*case) for case in cases]
        one.memo.clear()
        one.price_all([*cases, *cases])
        assert [one.memo[case] for case in cases] == pytest.approx(alone, rel=1e-14)
