"""A program: the model as argument, conversations as JSON on stdin, vLLM's greedy tokens on the last line of stdout."""

from __future__ import annotations

import json
import sys

NEW_TOKENS = 16


def main() -> None:
    """Start an engine, answer every conversation, print the tokens of the answers."""
    from vllm import LLM, SamplingParams

    # float32, where rounding is too small to turn the choice of a token between two implementations
    engine = LLM(sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True)
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    outputs = engine.chat(json.load(sys.stdin), greedy, use_tqdm=False)
    print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":  # the engine's processes import this file again
    main()
