"""What changes in a model's `config.json` with its weights: their dtype, and its layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from surgery.shared_keys import SHARED, sharing
from surgery.tying import TEXT_CONFIGS
from surgery.wording import quoted

# How configurations name the number of layers. Beside one of the decoder's own, the others count the encoder's.
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
_DECODER_COUNTS = ("num_decoder_layers", "decoder_layers")
# How they name the number of rows of the embedding.
_VOCABULARY_SIZES = ("vocab_size", "padded_vocab_size")
# Lists that are as long as there are layers by chance only.
_OTHER_LISTS = re.compile(r"architectures|(^|_)(tokens?|ids?|labels)(_|$)")
# Set where tensors outside the layers (Gemma 3n's `embed_tokens_per_layer`) have a part for each of them.
_PER_LAYER_INPUT = "hidden_size_per_layer_input"
# Settings that mean layers by their numbers, or every so many of them.
_BY_NUMBER = re.compile(r"layer(?!_?(norm|drop|scale))|first_k_dense|_interval|_pattern|sparse_step")


def with_dtype(config: Mapping[str, object], torch_dtype: str) -> dict[str, object]:
    """The config with every `dtype` (`torch_dtype` before transformers 5) replaced, nested configs included."""
    changed: dict[str, object] = {}
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str):
            changed[key] = torch_dtype
        elif isinstance(value, dict) and key.endswith("_config"):
            changed[key] = with_dtype(value, torch_dtype)
        else:
            changed[key] = value
    if "model_type" in config and not {"dtype", "torch_dtype"} & config.keys():
        changed["dtype"] = torch_dtype
    return changed


def with_vocabulary(config: Mapping[str, object], before: int, rows: int) -> tuple[dict[str, object], bool]:
    """The config for an embedding of `rows` rows, and whether it or that of its language model said `before`."""
    changed, found = dict(config), False
    for key, value in config.items():
        if key in _VOCABULARY_SIZES and value == before:
            changed[key], found = rows, True
        elif key in TEXT_CONFIGS and isinstance(value, dict):
            changed[key], inside = with_vocabulary(value, before, rows)
            found |= inside
    return changed, found


@dataclass(frozen=True, slots=True)
class LayerOrigin:
    """Where a layer of an output comes from: a role, its config and its number of layers, and which one of these."""

    role: str
    config: Mapping[str, object]
    layers: int
    layer: int


@dataclass
class Restacked:
    """The config for other layers; what is wrong, each with its kind; what to know; keys that mean layers by number."""

    config: dict[str, object]
    faults: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    by_number: list[str] = field(default_factory=list)


def restack(role: str, config: Mapping[str, object], layers: int, origins: Sequence[LayerOrigin]) -> Restacked:
    """The config of `role`, whose decoder has so many layers, for a decoder that consists of `origins`.

    In the config and those of its language model, the number of layers becomes that of `origins`, and each list (or
    pattern of letters) with one entry a layer gets for each layer the entry that it has in the config of its origin.
    """
    work = _Restacking(role, layers)
    found = Restacked(work.rebuilt(config, origins), work.faults, work.remarks, work.by_number)
    if not work.counted:
        told = ", ".join(f"`{key}: {value}`" for key, value in work.counts.items())
        found.faults["count"] = (
            f"the config of `{role}` says {told}, and its files hold {layers} layers; correct its `config.json`"
            if told
            else f"the config of `{role}` does not name the number of layers, which changes; add "
            f"`{_COUNTS[0]}: {layers}`, or the name that its architecture has for it, to its `config.json`"
        )
    return found


class _Restacking:
    def __init__(self, role: str, layers: int) -> None:
        self.role = role
        self.layers = layers
        self.counted = False
        self.counts: dict[str, object] = {}  # as found
        self.faults: dict[str, str] = {}
        self.remarks: list[str] = []
        self.by_number: list[str] = []

    def rebuilt(self, config: Mapping[str, object], origins: Sequence[LayerOrigin]) -> dict[str, object]:
        changed = dict(config)
        counts = _DECODER_COUNTS if any(key in config for key in _DECODER_COUNTS) else _COUNTS
        for key, value in config.items():
            if key in counts:
                self.counts[key] = value
                if value == self.layers:
                    self.counted = True
                    changed[key] = len(origins)
            elif key in TEXT_CONFIGS and isinstance(value, dict):
                changed[key] = self.rebuilt(value, [_nested(origin, key) for origin in origins])
            elif key == SHARED and value:
                changed[key] = self._shared(origins)
            elif key == _PER_LAYER_INPUT and value and [o.layer for o in origins] != [*range(self.layers)]:
                self.faults[key] = (
                    f"`{key}: {value}` in the config of `{self.role}` says that tensors outside the layers have a part "
                    "for each of them, which slices cannot take apart; expected every layer once, in its order"
                )
            elif _is_per_layer(key, value, self.layers):
                changed[key] = self._picked(key, value, origins)
            elif _is_by_number(key, value) and not ("window" in key and config.get("use_sliding_window") is False):
                self.by_number.append(key)
        return changed

    def _shared(self, origins: Sequence[LayerOrigin]) -> int:
        found = sharing([(o.config, o.layers, o.layer) for o in origins])
        if found.fault is not None:
            self.faults[SHARED] = found.fault
        if found.remark is not None:
            self.remarks.append(found.remark)
        return found.count

    def _picked(self, key: str, value: object, origins: Sequence[LayerOrigin]) -> object:
        """The entries of a list that has one for each layer."""
        lacking = dict.fromkeys(o.role for o in origins if not _is_per_layer(key, o.config.get(key), o.layers))
        if lacking:
            self.faults[key] = (
                f"`{key}` in the config of `{self.role}` has an entry for each layer, and in that of {quoted(lacking)} "
                f"it has not; expected checkpoints of one architecture"
            )
            return value
        entries = [entry[o.layer] for o in origins if isinstance(entry := o.config[key], list | str)]
        return "".join(entries) if isinstance(value, str) else entries


def _nested(origin: LayerOrigin, key: str) -> LayerOrigin:
    config = origin.config.get(key)
    return replace(origin, config=config if isinstance(config, dict) else {})


def _is_per_layer(key: str, value: object, layers: int) -> bool:
    """Whether a setting has an entry for each layer: `layer_types`, or a pattern such as Nemotron-H's `M-M*-`."""
    if isinstance(value, str):
        return key.endswith("_pattern") and len(value) == layers
    return isinstance(value, list) and len(value) == layers and not _OTHER_LISTS.search(key)


def _is_by_number(key: str, value: object) -> bool:
    if not _BY_NUMBER.search(key) or key.startswith("num_") or "encoder" in key or isinstance(value, bool):
        return False
    return bool(value) and isinstance(value, int | list)
