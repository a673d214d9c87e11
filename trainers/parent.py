"""The checkpoint that a run begins with: opened, named by its content, and made a network that can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from evalkit.digest import checkpoint_digest
from evalkit.engines.base import Model
from evalkit.errors import EngineError
from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.dtypes import DTYPES
from trainers.config import Training
from trainers.errors import TrainingError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parent:
    """A checkpoint on disk and the digest of its content."""

    checkpoint: Checkpoint
    digest: str

    @property
    def model(self) -> Model:
        """As engines take it."""
        return Model(self.checkpoint.source, self.digest, self.checkpoint.root)

    def json(self) -> Mapping[str, Any]:
        """Where it came from, as plain data."""
        checkpoint = self.checkpoint
        return {
            "source": str(checkpoint.source),
            "hub_id": checkpoint.hub_id,
            "revision": checkpoint.revision,
            "digest": self.digest,
        }


def open_parent(source: str, processes: PartialState | None = None) -> Parent:
    """Open the checkpoint of a directory or hub id; of several processes one reads all of it, for its digest.

    Raises CheckpointError, and TrainingError where it cannot be trained.
    """
    checkpoint = open_checkpoint(source)
    if not checkpoint.is_directory or not checkpoint.config:
        found = "is a single file" if not checkpoint.is_directory else "has no `config.json`"
        raise TrainingError(f"`{source}` {found}; expected a directory with weights, `config.json` and a tokenizer")
    if checkpoint.adapters:
        raise TrainingError(
            f"`{source}` is a model with an adapter over it; make one checkpoint of them first: "
            "`surgery apply merge-adapter MODEL+ADAPTER OUT`"
        )
    stored = {info.dtype.name for info in checkpoint.tensors.values()}
    strange = sorted(name for name in stored if not DTYPES[name].arithmetic and not name.startswith(("I", "U", "BOOL")))
    if "quantization_config" in checkpoint.config or strange:
        what = f"tensors of dtype {', '.join(strange)}" if strange else "a `quantization_config`"
        raise TrainingError(f"`{source}` is quantised: it has {what}; give the checkpoint in bfloat16 or float32")
    if processes is None or processes.num_processes == 1:
        return Parent(checkpoint, checkpoint_digest(checkpoint))
    digest = [checkpoint_digest(checkpoint) if processes.is_main_process else ""]
    broadcast_object_list(digest)
    return Parent(checkpoint, digest[0])


def load_network(parent: Parent, config: Training) -> Any:
    """The causal language model of transformers in float32 on the CPU, in training mode, and threads that suit it.

    Raises EngineError where transformers cannot load it, TrainingError where it has no output head.
    """
    from transformers import GenerationConfig

    from evalkit.engines.loading import load, quiet
    from evalkit.engines.threads import suit_threads

    try:
        with quiet():
            network = load(parent.model, "cpu", "float32", config.attention)
    except EngineError as error:
        if config.attention is None:
            raise
        raise TrainingError(f"{error}; or leave out `attention`, which is `{config.attention}`") from error
    if network.get_output_embeddings() is None:
        found = f"`{parent.checkpoint.source}`: `{type(network).__name__}` has no output head"
        raise TrainingError(f"{found}; expected a causal language model")
    # Checkpoints carry their parent's; transformers refuses to save some that it loads.
    network.generation_config = GenerationConfig()
    suit_threads(network)
    return network.train()


def check_vocabulary(network: torch.nn.Module, source: str, largest: int) -> None:
    """Raise TrainingError where the tokenizer gives a token that the network does not have."""
    known = network.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if largest >= known:
        raise TrainingError(
            f"`{source}`: its tokenizer gives the token {largest}, but the model has {known} tokens; use the tokenizer "
            "that the model was trained with"
        )
