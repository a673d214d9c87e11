"""The model card: `README.md` with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import re

from surgery.checkpoint import Checkpoint
from surgery.plan import Plan

CARD_FILE = "README.md"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_LICENSE = re.compile(r"^license:[ ]*([\w.-]+)[ ]*$", re.ASCII | re.MULTILINE)


def make_card(plan: Plan) -> bytes:
    """The card of an output: what it was made from and how, and the recipe that makes it again."""
    recipe = plan.recipe
    edited = sum(tensor.action in ("adapt", "compute") for tensor in plan.tensors)
    inputs = "\n".join(
        f"| `{role}` | {_model_name(checkpoint)} | {checkpoint.revision or ''} |"
        for role, checkpoint in plan.inputs.items()
    )
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe.text)), default=0))
    return f"""---
{_front_matter(plan)}
---

# {recipe.name}

{recipe.summary}

Made from the checkpoints below by editing weights, without training. {edited} of {len(plan.tensors)} tensors were
computed, the others are as in their source. `surgery.json` lists what was done to each, with digests;
`surgery verify` checks them.

| role | checkpoint | revision |
|---|---|---|
{inputs}
{_layers(plan)}
## Recipe

{fence}yaml
{recipe.text.strip()}
{fence}
""".encode(errors="backslashreplace")


def _layers(plan: Plan) -> str:
    """Of which layers the output consists, where a recipe has slices."""
    if not plan.layers:
        return ""
    rows = "\n".join(f"| {layers} | {origin} |" for layers, origin in plan.layers)
    return f"\n## Layers\n\n| layers | of |\n|---|---|\n{rows}\n"


def _front_matter(plan: Plan) -> str:
    start = plan.inputs[plan.recipe.start]
    lines = ["library_name: transformers", "tags:", "- merge", "- surgery"]
    hub_ids = [
        hub_id
        for checkpoint in plan.inputs.values()
        for hub_id in (checkpoint.hub_id, *(adapter.hub_id for adapter in checkpoint.adapters))
    ]
    known = dict.fromkeys(hub_id for hub_id in hub_ids if hub_id)
    if known:  # the hub takes every name here for a repository of its own
        lines += ["base_model:", *(f"- {json.dumps(hub_id)}" for hub_id in known), "base_model_relation: merge"]
    found = license_of(start)
    return "\n".join([f"license: {found}", *lines] if found else lines)


def _model_name(checkpoint: Checkpoint) -> str:
    """A link to the hub where it is known; a path is nobody else's business, its last part may tell something."""
    last = checkpoint.root.resolve().name if checkpoint.is_directory else checkpoint.shards[0].path.name
    adapters = [_link(adapter.hub_id, adapter.root.resolve().name) for adapter in checkpoint.adapters]
    return " + ".join([_link(checkpoint.hub_id, last), *adapters])


def _link(hub_id: str | None, name: str) -> str:
    return f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"`{name}`"


def license_of(checkpoint: Checkpoint) -> str | None:
    """The license that a checkpoint's own card names, or None."""
    path = checkpoint.root / CARD_FILE
    if not checkpoint.is_directory or not path.is_file():
        return None
    front_matter = _FRONT_MATTER.match(path.read_text(encoding="utf-8", errors="replace"))
    found = _LICENSE.search(front_matter[1]) if front_matter else None
    return found[1] if found else None
