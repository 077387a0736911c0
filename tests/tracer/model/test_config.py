"""What a run keeps of a config: its dimensions and switches, and nobody's notes."""

from __future__ import annotations

from typing import Any

import pytest

from prunescope.taxonomy.presets import preset_config, preset_names
from prunescope.taxonomy.shape import ModelShape

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.four_layers]

SECRETS = {
    "token": "hf_" + "abcdefSECRETabcdefSECRET",
    "openai": "sk-abcdefabcdefabcdef",
    "aws": "AKIAABCDEFGHIJKLMNOP",
    "hex": "0123456789abcdef0123456789abcdef",
    "random": "aB3dE5gH7jK9mN1pQ2rS",
    "mail": "user@corp.com",
    "url": "https://corp.example/x",
    "path": "/home/user/model",
    "windows": "C:\\Users\\user",
    "relative": "../user/model",
    "home": "~user",
    "host": "h.corp.internal",
    "words": "host h user u",
}


def kept(config: Any) -> dict[str, Any]:
    from prunescope.tracer.model.published_config import kept_config

    return kept_config(config)


def llama(**more: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**preset_config("tiny-llama"), **more)


def test_unknown_keys_are_left_out() -> None:
    notes = {**SECRETS, "count": 3, "flag": True, "more": {"a": 1}}
    assert llama(**notes).to_dict()["mail"] == "user@corp.com"
    assert kept(llama(**notes)) == kept(llama())


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_no_known_key_holds_a_secret(secret: str) -> None:
    config = llama()
    plain = kept(config)
    config.architectures = [secret]
    config.name_or_path = config.hidden_act = secret
    config.rope_parameters = {"rope_type": secret, "owner": "user", secret: 1, "rope_theta": 1e4}
    config.id2label = {0: secret}
    actual = kept(config)
    assert secret not in str(actual)
    assert "user" not in str(actual)
    assert actual["rope_parameters"] == {"rope_theta": 1e4}
    changed = {"architectures", "hidden_act", "rope_parameters"}
    assert plain.keys() - actual.keys() == {"architectures", "hidden_act"}
    assert {k: actual[k] for k in actual if k not in changed} == {
        k: plain[k] for k in plain if k not in changed
    }


def test_a_text_part_is_read_by_its_own_class() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("gemma3", text_config={"hidden_size": 64, "mail": "a@b.c"})
    actual = kept(config)
    assert config.to_dict()["text_config"]["mail"] == "a@b.c"
    assert actual["text_config"]["hidden_size"] == 64
    assert "mail" not in actual["text_config"]
    assert actual["text_config"].items() <= kept(config.text_config).items()


def test_of_a_class_of_somebody_else_the_taxonomys_keys_and_numbers_stay() -> None:
    from transformers import PretrainedConfig

    class Own(PretrainedConfig):
        model_type = "own"

    config = Own(
        d_model=64, layer_types=["full_attention"], width=3, wide=True, note="x", **SECRETS
    )
    actual = kept(config)
    assert {k: actual[k] for k in ("model_type", "d_model", "layer_types", "width", "wide")} == {
        "model_type": "own", "d_model": 64, "layer_types": ["full_attention"], "width": 3,
        "wide": True,
    }  # fmt: skip
    assert "note" not in actual
    assert not SECRETS.keys() & actual.keys()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_keeps_its_shape(name: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(**preset_config(name))
    assert ModelShape.from_config(kept(config)) == ModelShape.from_config(config.to_dict())


def test_a_config_that_a_pruning_changed_is_kept_as_it_is() -> None:
    """static-m gives a config with fixed layers a class of its own."""
    config = llama()
    before = kept(config)
    config.num_hidden_layers = 1
    config.__class__ = type("Fixed", (type(config),), {})
    assert kept(config) == {**before, "num_hidden_layers": 1}
