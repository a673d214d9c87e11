"""Low-rank adapters (PEFT's) as a part of a model: what they add to which tensor, found from headers alone.

terms     what is added to a tensor, and what that costs; without torch
config    adapter_config.json: scales and ranks, and what is refused
keys      PEFT's names of tensors, and which tensors of the base they mean
adapter   an adapter's directory, opened and laid over the tensors of its base

`surgery.checkpoint` opens `BASE+ADAPTER`, `surgery.operand` adds while a tensor is read.
"""
