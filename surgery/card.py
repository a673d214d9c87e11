"""The model card: `README.md` with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import re

from surgery.checkpoint import Checkpoint
from surgery.manifest import Manifest
from surgery.plan import Plan

CARD_FILE = "README.md"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_LICENSE = re.compile(r"^license:[ ]*([\w.-]+)[ ]*$", re.ASCII | re.MULTILINE)


def make_card(plan: Plan, manifest: Manifest) -> bytes:
    """The card of an output: what it was made from and how, and the recipe that makes it again."""
    recipe = plan.recipe
    edited = sum(tensor.action == "compute" for tensor in plan.tensors)
    inputs = "\n".join(
        f"| `{role}` | `{entry.hub_id or entry.source}` | {entry.revision or ''} |"
        for role, entry in manifest.inputs.items()
    )
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

## Recipe

```yaml
{recipe.text.strip()}
```
""".encode()


def _front_matter(plan: Plan) -> str:
    start = plan.inputs[plan.recipe.start]
    lines = ["library_name: transformers", "base_model:"]
    lines += [f"- {json.dumps(_model_name(checkpoint))}" for checkpoint in plan.inputs.values()]
    lines += ["base_model_relation: merge", "tags:", "- merge", "- surgery"]
    found = _license(start)
    return "\n".join([f"license: {found}", *lines] if found else lines)


def _model_name(checkpoint: Checkpoint) -> str:
    """The hub's name where it is known; a path means nothing to others, its last part may."""
    if checkpoint.hub_id:
        return checkpoint.hub_id
    return checkpoint.root.name if checkpoint.is_directory else checkpoint.shards[0].path.stem


def _license(checkpoint: Checkpoint) -> str | None:
    path = checkpoint.root / CARD_FILE
    if not checkpoint.is_directory or not path.is_file():
        return None
    front_matter = _FRONT_MATTER.match(path.read_text(encoding="utf-8", errors="replace"))
    found = _LICENSE.search(front_matter[1]) if front_matter else None
    return found[1] if found else None
