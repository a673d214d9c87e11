"""The model card of a trained checkpoint: `README.md` with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json

from surgery.card import CARD_FILE, license_of
from surgery.mapping_source import to_yaml
from trainers.config import Training
from trainers.parent import Parent

__all__ = ["CARD_FILE", "make_card"]

_METHODS = {"sft": "supervised fine-tuning", "ppo": "PPO", "grpo": "GRPO"}


def make_card(parent: Parent, trainer: str, config: Training, step: int) -> str:
    """What the checkpoint was made from and how, and the configuration that makes it again."""
    checkpoint = parent.checkpoint
    found = license_of(checkpoint)
    lines = ["library_name: transformers", "tags:", f"- {trainer}", "- surgery"]
    if found:
        lines.insert(0, f"license: {found}")
    if checkpoint.hub_id:  # the hub takes every name here for a repository of its own
        lines += ["base_model:", f"- {json.dumps(checkpoint.hub_id)}", "base_model_relation: finetune"]
    name = checkpoint.hub_id or checkpoint.root.resolve().name  # a path is nobody else's business
    front = "\n".join(lines)
    # what and where of this machine is left out
    plain = config.model_dump(mode="json", by_alias=True, exclude={"model", "out"}, exclude_defaults=True)
    return f"""---
{front}
---

# {name}, {_METHODS[trainer]}, step {step}

Made from `{name}` by `surgery train {trainer}`. `training.json` holds the configuration, the seed and digest of the
data, the digest of the parent and of each file.

```yaml
{to_yaml(plain).strip()}
```
"""
