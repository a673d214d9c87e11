"""The published edit, done plainly: both models in memory, two `torch.linalg.svd` in float32 for each matrix.

    python benchmarks/plain_svd.py BASE SFT OUT

The peer of `restore_directions head=20%` in apply.py, with all threads for each decomposition.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HEAD = 0.2


def restored(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """[U_b,h | U_rest] diag(S) [V_b,h | V_rest]^T for two matrices of one shape."""
    U_b, _, Vh_b = torch.linalg.svd(base.float(), full_matrices=False)
    U, S, Vh = torch.linalg.svd(tuned.float(), full_matrices=False)
    h = int(HEAD * len(S) + 0.5)
    mixed_U = torch.cat([U_b[:, :h], U[:, h:]], dim=1)
    return ((mixed_U * S) @ torch.cat([Vh_b[:h], Vh[h:]])).to(tuned.dtype)


def main() -> None:
    """Edit every layer's matrices, shard by shard."""
    base, sft, out = map(Path, sys.argv[1:])
    out.mkdir()
    for path in sorted(sft.glob("*.safetensors")):
        ours, theirs = load_file(path), load_file(base / path.name)
        for name, tensor in ours.items():
            if tensor.dim() == 2 and ".layers." in name:
                ours[name] = restored(theirs[name], tensor)
        save_file(ours, out / path.name, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
