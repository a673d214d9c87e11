"""Run as a program: MODEL on the command line, prompts (token ids) as JSON on stdin, vLLM's greedy tokens on stdout."""

from __future__ import annotations

import json
import sys

from vllm import LLM, SamplingParams, TokensPrompt

NEW_TOKENS = 16


def main() -> None:
    """Start an engine, complete every prompt, print the completions as JSON on the last line."""
    prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens in json.load(sys.stdin)]
    # float32, where rounding is too small to turn the choice of a token between two implementations
    engine = LLM(sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True)
    outputs = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), use_tqdm=False)
    print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":  # the engine's own processes import this file again
    main()
