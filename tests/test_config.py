"""What of a config changes with the layers."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.config import LayerOrigin, restack

KINDS = ["full", "sliding", "full", "sliding"]


def rebuilt(config: dict[str, Any], *picked: int, layers: int = 4) -> dict[str, Any]:
    """The config for these layers of the same model."""
    found = restack("sft", config, layers, [LayerOrigin("sft", config, layers, layer) for layer in picked])
    assert found.faults == {}
    return found.config


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"])
def test_the_number_of_layers_under_each_of_its_names(key: str) -> None:
    """Whatever the architecture calls it, and wherever it stands among the keys, whose order stays."""
    assert list(rebuilt({"a": 4, key: 4, "z": 1}, 0, 1, 1).items()) == [("a", 4), (key, 3), ("z", 1)]


def test_a_decoders_own_number_goes_before_that_of_the_encoder() -> None:
    """T5 and BART count the layers of both; those of the encoder stay."""
    for decoder, other in (("num_decoder_layers", "num_layers"), ("decoder_layers", "num_hidden_layers")):
        assert rebuilt({decoder: 4, other: 4, "encoder_layers": 4}, 0) == {decoder: 1, other: 4, "encoder_layers": 4}


def test_nested_configs_of_the_language_model() -> None:
    """The text config's number and lists change, also when the whole repeats them; the vision tower's do not."""
    config = {
        "num_hidden_layers": 4,
        "text_config": {"num_hidden_layers": 4, "layer_types": KINDS},
        "vision_config": {"num_hidden_layers": 4, "layer_types": KINDS},
    }
    assert rebuilt(config, 3, 3, 0) == {
        "num_hidden_layers": 3,
        "text_config": {"num_hidden_layers": 3, "layer_types": ["sliding", "sliding", "full"]},
        "vision_config": {"num_hidden_layers": 4, "layer_types": KINDS},
    }


def test_lists_with_an_entry_a_layer() -> None:
    """Any list as long as there are layers, of whatever: entries follow their layers. Lists of other things stay."""
    config = {
        "num_hidden_layers": 4,
        "num_kv_heads": [1, 2, 3, 4],
        "block_configs": [{"a": i} for i in range(4)],
        "hybrid_override_pattern": "M*M-",
        "eos_token_id": [1, 2, 3, 4],
        "mrope": [1, 2, 3],
        "rope_scaling": {"factors": [1, 2, 3, 4]},
    }
    assert rebuilt(config, 2, 1, 1) == {
        **config,
        "num_hidden_layers": 3,
        "num_kv_heads": [3, 2, 2],
        "block_configs": [{"a": 2}, {"a": 1}, {"a": 1}],
        "hybrid_override_pattern": "M**",
    }


def test_entries_come_from_the_config_of_the_layers_own_model() -> None:
    """A deeper model's list is longer; a model whose config has no such list is at fault."""
    ours: dict[str, Any] = {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    theirs: dict[str, Any] = {"num_hidden_layers": 3, "layer_types": ["c", "d", "e"]}
    origins = [LayerOrigin("base", ours, 2, 1), LayerOrigin("sft", theirs, 3, 2), LayerOrigin("sft", theirs, 3, 0)]
    found = restack("base", ours, 2, origins)
    assert found.config == {"num_hidden_layers": 3, "layer_types": ["b", "e", "c"]}
    origins[1] = LayerOrigin("sft", {"num_hidden_layers": 3}, 3, 2)
    (message,) = restack("base", ours, 2, origins).faults.values()
    assert message == (
        "`layer_types` in the config of `base` has an entry for each layer, and in that of `sft` it has not; expected "
        "checkpoints of one architecture"
    )


def test_a_config_that_does_not_name_the_number_of_layers() -> None:
    """Nothing is guessed: the message says what to add; or, where the number is another, what contradicts what."""
    (message,) = restack("sft", {"model_type": "x"}, 4, []).faults.values()
    assert "does not name the number of layers" in message
    assert "add `num_hidden_layers: 4`" in message
    (message,) = restack("sft", {"num_hidden_layers": 5, "text_config": {"n_layer": 6}}, 4, []).faults.values()
    assert message.startswith(
        "the config of `sft` says `num_hidden_layers: 5`, `n_layer: 6`, and its files hold 4 layers"
    )


def test_settings_that_mean_layers_by_number_are_told() -> None:
    """They stay as they are, and whoever runs it is told; what is empty, off or about something else is not."""
    config = {
        "num_hidden_layers": 4,
        "first_k_dense_replace": 1,
        "mlp_only_layers": [],
        "moe_layers": [1, 3],
        "full_attention_interval": 2,
        "max_window_layers": 3,
        "layer_norm_eps": 1e-5,
        "layernorm_epsilon": 1,
        "num_nextn_predict_layers": 1,
        "use_layer_scale": True,
    }
    found = restack("sft", config, 4, [LayerOrigin("sft", config, 4, 0)])
    assert found.by_number == ["first_k_dense_replace", "moe_layers", "full_attention_interval", "max_window_layers"]
    config["use_sliding_window"] = False  # as in every Qwen2.5
    found = restack("sft", config, 4, [LayerOrigin("sft", config, 4, 0)])
    assert found.by_number == ["first_k_dense_replace", "moe_layers", "full_attention_interval"]
