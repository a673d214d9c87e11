"""Plans as plain data: what `--json` prints of them."""

from __future__ import annotations

from typing import get_args

from surgery.plan import Action, Plan, TensorPlan


def plan_json(made: Plan) -> dict[str, object]:
    """What is done as a whole, without its tensors."""
    return {
        "plan": made.hash,
        "recipe": made.recipe.name,
        "parameters": dict(made.recipe.parameters),
        "inputs": {role: checkpoint.source for role, checkpoint in made.inputs.items()},
        "files": {file.name: file.size for file in made.files},
        "bytes_read": made.bytes_read,
        "bytes_written": made.bytes_written,
        "flops": sum(map(made.flops, made.tensors)),
        "actions": {action: sum(t.action == action for t in made.tensors) for action in get_args(Action)},
        "remarks": list(made.remarks),
        **({"layers": dict(made.layers)} if made.layers else {}),
    }


def tensor_json(made: Plan, tensor: TensorPlan) -> dict[str, object]:
    """How one of a plan's tensors is made."""
    return {
        "name": tensor.slot.name,
        "file": tensor.slot.file,
        "dtype": tensor.slot.dtype.name,
        "shape": tensor.slot.shape,
        "action": tensor.action,
        "steps": tensor.steps,
        "read": tensor.read,
        "memory": made.memory(tensor),
        "flops": made.flops(tensor),
    }
