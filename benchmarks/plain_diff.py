"""The plain way to compare two models: `torch.linalg.svd` in float32 of every matrix of both, with all threads.

    python benchmarks/plain_diff.py BASE SFT

The peer of `surgery diff` in diff.py; the decompositions alone, no figure is computed from them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def main() -> None:
    """Decompose every matrix, shard by shard."""
    for directory in map(Path, sys.argv[1:]):
        for path in sorted(directory.glob("*.safetensors")):
            for tensor in load_file(path).values():
                if tensor.dim() == 2:
                    torch.linalg.svd(tensor.float(), full_matrices=False)


if __name__ == "__main__":
    main()
