"""What vLLM's worker processes do for us, as an extension of their class; its methods are called by `collective_rpc`.

How weights get into a running worker. A layer that multiplies (`quant_method`) is prepared after it is loaded: on a
CPU the kernels multiply by a packed copy, which a closure `cpu_linear` of the layer holds, and the weights themselves
are mostly dropped. `reload_weights` (vllm/model_executor/model_loader/reload/layerwise.py) gives every layer fresh
memory, loads it, prepares it, and copies the result into the old place, as soon as as many elements have come as the
layer has. A tied head gets none: its weight is the embedding's, which loads and prepares the embedding only. So the
head's weight is new, its packed copy is of the old weights, and logits go on coming from the old weights. Every
layer that shares its weight with another is prepared here unless it was.

Afterwards every layer proves that it multiplies by what was loaded: unit vectors must give columns of the weights.
This is exact, since 1 w + 0 + ... + 0 is not rounded, so that even the smallest fine-tuning cannot hide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

COLUMNS = 4  # of each matrix that are compared

Columns = tuple[torch.Tensor, torch.Tensor]  # their numbers, and the columns as rows


class EngineExtension:
    """Methods for a worker process of one engine, with one part of the model."""

    model_runner: Any
    vllm_config: Any
    reload_weights: Callable[..., None]

    def take_weights(self, path: str) -> list[str]:
        """Load the weights of a checkpoint over the present ones; the names of what then does not have them."""
        model = self.model_runner.get_model()
        layers = dict(_prepared_layers(model))
        with torch.no_grad():
            with _loaded_names(model) as names, _observed(layers) as columns:
                self.reload_weights(weights_path=path)
                for name in _sharing(layers):
                    if name not in columns:
                        layers[name].quant_method.process_weights_after_loading(layers[name])
            stale = [name for name, _ in model.named_parameters() if name not in names]
            for name, layer in layers.items():
                if name not in columns or not _has(layer, columns[name]):
                    stale.append(name)
            return stale


def _prepared_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with weights of their own that are prepared after loading, with their names."""
    for name, layer in model.named_modules():
        prepared = hasattr(getattr(layer, "quant_method", None), "process_weights_after_loading")
        if prepared and any(True for _ in layer.parameters(recurse=False)):
            yield name, layer


def _sharing(layers: dict[str, Any]) -> list[str]:
    """The layers whose weight is that of another layer as well."""
    owners: dict[int, list[str]] = {}
    for name, layer in layers.items():
        owners.setdefault(id(getattr(layer, "weight", layer)), []).append(name)
    return [name for names in owners.values() if len(names) > 1 for name in names]


@contextmanager
def _loaded_names(model: Any) -> Iterator[set[str]]:
    """The names of the parameters that the model takes from a checkpoint meanwhile."""
    names: set[str] = set()
    load = model.load_weights

    def noting(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        names.update(loaded if loaded is not None else dict(model.named_parameters()))
        return loaded

    model.load_weights = noting
    try:
        yield names
    finally:
        del model.load_weights


@contextmanager
def _observed(layers: dict[str, Any]) -> Iterator[dict[str, Columns | None]]:
    """Some columns of the weights of every layer that is prepared meanwhile, taken just before."""
    columns: dict[str, Columns | None] = {}
    names = {layer: name for name, layer in layers.items()}
    methods = {id(layer.quant_method): layer.quant_method for layer in layers.values()}
    for method in methods.values():

        def noting(layer: Any, prepare: Callable[[Any], None] = method.process_weights_after_loading) -> None:
            columns[names[layer]] = _columns(layer)
            prepare(layer)

        method.process_weights_after_loading = noting
    try:
        yield columns
    finally:
        for method in methods.values():
            del method.process_weights_after_loading


def _columns(layer: Any) -> Columns | None:
    """A few columns, spread over the width; None for what is no plain matrix (experts, convolutions)."""
    W = getattr(layer, "weight", None)
    if not isinstance(W, torch.Tensor) or W.ndim != 2 or 0 in W.shape or not W.is_floating_point():
        return None
    numbers = torch.linspace(0, W.shape[1] - 1, min(COLUMNS, W.shape[1]), device=W.device).long()
    return numbers, W[:, numbers].T.clone()


def _has(layer: Any, columns: Columns | None) -> bool:
    """Whether the layer multiplies unit vectors to exactly these columns, and its weight has them unless dropped."""
    if columns is None:
        return True
    numbers, expected = columns
    W = layer.weight
    if W.numel() and not torch.equal(W[:, numbers].T, expected):
        return False
    width = W.shape[1] if W.numel() else layer.input_size_per_partition
    units = torch.zeros(len(numbers), width, dtype=expected.dtype, device=expected.device)
    units[torch.arange(len(numbers)), numbers] = 1
    return torch.equal(layer.quant_method.apply(layer, units, None), expected)
