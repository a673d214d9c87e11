"""The environment of programs that start vLLM, in processes of their own: it changes warnings and signals at will."""

from __future__ import annotations

SEPARATE = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}  # GiB

# The engine within the program, not in two more processes: each of those imports vLLM for itself, which takes 10 s of
# processor time, and they take 5 s to end. For tests of what comes out of an engine, not of how it is run.
WITHIN = SEPARATE | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
