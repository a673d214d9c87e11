"""Whether two checkpoints fit together, so that their difference means what an adapter can say."""

from __future__ import annotations

from collections.abc import Iterator

from surgery.checkpoint import Checkpoint
from surgery.errors import CheckpointError, Fault
from surgery.vocabulary import differences, has_tokenizer_file, read_vocabulary
from surgery.wording import numbered, show


def layer_faults(base: Checkpoint, model: Checkpoint) -> Iterator[Fault]:
    """An adapter has no layers that its base lacks."""
    for stack, layers in base.anatomy.stacks.items():
        other = model.anatomy.stacks.get(stack)
        if other is not None and other.layers != layers.layers:
            message = (
                f"`{stack}` has {layers.layers} layers in the base and {other.layers} in the model; expected two "
                f"checkpoints of one architecture"
            )
            yield Fault(model.source, message)


def token_faults(base: Checkpoint, model: Checkpoint, name: str) -> Iterator[Fault]:
    """Rows of the tensor `name` are subtracted by position, so no id may mean one token here and another there.

    Tokens that one of both lacks have rows of padding there. Without `tokenizer.json` on both sides nothing is known.
    """
    if not (has_tokenizer_file(base) and has_tokenizer_file(model)):
        return
    try:
        found = differences(read_vocabulary(base), read_vocabulary(model))
    except CheckpointError:  # its weights may be compared all the same
        return
    found = [each for each in found if each.here is not None and each.there is not None]
    if found:
        first = found[0]
        yield Fault(
            f"`{name}`",
            f"{numbered(len(found), 'token id')} do not mean the same: {first.id} is {show(first.here)} in the base "
            f"and {show(first.there)} in the model, and rows are subtracted by position; leave it out with `--exclude`",
        )
