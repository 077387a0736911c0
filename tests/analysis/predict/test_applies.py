"""A family that cannot be applied to a model is no point, no curve and no row."""

from __future__ import annotations

import pytest

from prunescope.analysis.predict.predict_request import PredictRequest
from prunescope.taxonomy.architecture_traits import traits_of
from prunescope.taxonomy.config_traits import read_traits
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import families
from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape
from tests.analysis.predict.plain import predict

ONE_HEAD = "static-nk-heads cannot be applied to this model: one KV head serves all query heads"


def test_it_is_refused_with_the_reason_of_families() -> None:
    request = {"model": "gemma-3-1b", "device": "h100-sxm", "sparsity": 0.5}
    with pytest.raises(PrunescopeError, match=ONE_HEAD):
        predict(PredictRequest(**request, method="static-nk-heads"))
    found = predict(PredictRequest(**request, method="static-nk-heads,static-m"))
    assert [point["method"] for point in found["points"]] == ["static-m"]
    assert any(ONE_HEAD in warning for warning in found["warnings"])
    four = predict(PredictRequest(**{**request, "model": "gemma-3-4b"}, method="static-nk-heads"))
    assert four["points"]


@pytest.mark.parametrize("name", preset_names())
def test_a_shape_alone_says_the_same_as_its_config(name: str) -> None:
    config = preset_config(name)
    of_shape, of_config = traits_of(ModelShape.from_config(config)), read_traits(config)
    for one in families():
        assert one.applies(of_shape) == one.applies(of_config), one.id
