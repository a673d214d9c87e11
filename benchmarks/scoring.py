"""Scoring by vLLM: five checkpoints in one engine against five engines, our batches against `LLM.generate`, and the
answers of vLLM against those of transformers.

    python benchmarks/scoring.py CHECKPOINT... [--directory DISK] [--prompts 32] [--tokens 64] [--runs 3]
        [--only swaps|throughput|agreement]

One checkpoint is made into five below DISK by adding noise to its weights, the size of a mild fine-tuning; of several
given, each is scored as it is. Every engine is a program of its own, so its time includes starting Python and vLLM.
Prints times, tokens a second and ratios.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evalkit.engines.base import Model, Request, Sampling
from evalkit.engines.transformers import TransformersEngine
from evalkit.engines.vllm import VllmEngine

TWINS = 5
NOISE = 0.01  # of the standard deviation of each matrix
CONTEXT = 512  # tokens


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--directory", type=Path, help="for the twins of a single checkpoint")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--runs", type=int, default=3, help="of each side of the throughput")
    parser.add_argument("--only", choices=["swaps", "throughput", "agreement"])
    parser.add_argument("--score", action="store_true", help=argparse.SUPPRESS)  # what this program calls itself with
    options = parser.parse_args()
    checkpoints: list[Path] = options.checkpoints
    if options.score:
        print(json.dumps(score(checkpoints, options.prompts, options.tokens)))
        return
    if options.only in (None, "swaps"):
        if len(checkpoints) == 1:
            if options.directory is None:
                parser.error("one checkpoint is made into five below `--directory`")
            checkpoints = twins(checkpoints[0], options.directory)
        swaps(checkpoints, options.prompts, options.tokens)
    if options.only in (None, "throughput"):
        throughput(checkpoints[0], options.prompts, options.tokens, options.runs)
    if options.only in (None, "agreement"):
        agreement(checkpoints[0], options.prompts, options.tokens)


def twins(checkpoint: Path, directory: Path) -> list[Path]:
    """The checkpoint and copies with noise, which stay for the next run."""
    import torch
    from safetensors.torch import load_file, save_file

    made = [checkpoint]
    for seed in range(1, TWINS):
        twin = directory / f"twin-{seed}"
        made.append(twin)
        if twin.exists():
            continue
        shutil.copytree(checkpoint, directory / "unfinished", dirs_exist_ok=True)
        generator = torch.Generator().manual_seed(seed)
        for path in sorted((directory / "unfinished").glob("*.safetensors")):
            tensors = load_file(path)
            for W in tensors.values():
                if W.ndim == 2:
                    noise = torch.randn(W.shape, generator=generator) * (NOISE * W.float().std())
                    W.copy_(W.float() + noise)
            save_file(tensors, path, metadata={"format": "pt"})
        (directory / "unfinished").rename(twin)
    return made


def swaps(checkpoints: Sequence[Path], prompts: int, tokens: int) -> None:
    """All checkpoints in one program, and each in one of its own."""
    print(f"{len(checkpoints)} checkpoints, {prompts} prompts each, answers of up to {tokens} tokens", flush=True)
    together, found = _timed(checkpoints, prompts, tokens)
    print(f"  one engine        {together:7.1f} s  ({found['starts']} start, {found['swaps']} swaps)", flush=True)
    alone, texts = 0.0, []
    for checkpoint in checkpoints:
        seconds, single = _timed([checkpoint], prompts, tokens)
        alone += seconds
        texts += single["texts"]
    print(f"  an engine each    {alone:7.1f} s")
    equal = sum(a == b for a, b in zip(found["texts"], texts, strict=True))
    print(f"  engines each / one engine: {alone / together:.1f} x; {equal} of {len(texts)} answers are equal\n")


def score(checkpoints: Sequence[Path], prompts: int, tokens: int) -> dict[str, Any]:
    """Answer the same prompts with each checkpoint, by one VllmEngine."""
    texts = []
    with VllmEngine({}) as engine:
        for checkpoint in checkpoints:
            engine.load(Model(str(checkpoint), str(checkpoint), checkpoint), CONTEXT)
            answers = dict(engine.generate(_requests(prompts), Sampling(max_tokens=tokens)))
            texts += [answers[i].text for i in range(prompts)]
        return {"starts": engine.starts, "swaps": engine.swaps, "texts": texts}


def throughput(checkpoint: Path, prompts: int, tokens: int, runs: int) -> None:
    """Batches of one engine: given to us as conversations, and to `LLM.generate` as token ids, in turns."""
    from vllm import SamplingParams

    requests = _requests(prompts)
    with VllmEngine({}) as engine:
        engine.load(Model(str(checkpoint), str(checkpoint), checkpoint), CONTEXT)
        llm, renderer = engine._llm, engine._loaded()  # the very engine that we use
        ids = [{"prompt_token_ids": renderer.tokens(request.prompt)} for request in requests]
        params = SamplingParams(temperature=0, max_tokens=tokens, stop_token_ids=list(renderer.stops), ignore_eos=True)

        def ours() -> int:
            return sum(each.tokens for _, each in engine.generate(requests, Sampling(max_tokens=tokens)))

        def theirs() -> int:
            outputs = llm.generate(ids, params, use_tqdm=False)
            return sum(len(output.outputs[0].token_ids) for output in outputs)

        rates: dict[str, list[float]] = {"ours": [], "LLM.generate": []}
        llm.generate(ids, params, use_tqdm=False)  # both find the same cache of prompts
        for _ in range(runs):
            rates["LLM.generate"].append(_rate(theirs))
            rates["ours"].append(_rate(ours))
    print(f"{prompts} prompts, answers of up to {tokens} tokens: tokens a second, median of {runs}")
    for name, found in rates.items():
        print(f"  {name:14} {statistics.median(found):7.0f}  ({min(found):.0f}-{max(found):.0f})")
    ratios = [a / b for a, b in zip(rates["ours"], rates["LLM.generate"], strict=True)]
    print(f"  ours / LLM.generate: {statistics.median(ratios):.3f}  ({min(ratios):.3f}-{max(ratios):.3f})\n")


def agreement(checkpoint: Path, prompts: int, tokens: int) -> None:
    """The share of greedy answers that are the same text, by dtype."""
    print(f"{prompts} prompts, greedy answers of up to {tokens} tokens: the same by vLLM and by transformers")
    model = Model(str(checkpoint), str(checkpoint), checkpoint)
    for dtype in ("float32", "bfloat16"):
        found = []
        for engine in (VllmEngine({"dtype": dtype}), TransformersEngine({"dtype": dtype})):
            with engine:
                engine.load(model, CONTEXT)
                answers = dict(engine.generate(_requests(prompts), Sampling(max_tokens=tokens)))
            found.append([answers[i].text for i in range(prompts)])
        equal = sum(a == b for a, b in zip(*found, strict=True))
        print(f"  {dtype:9} {equal} of {prompts}")


def _requests(prompts: int) -> list[Request]:
    text = "Write a formula of the numbers {}, {}, {} and {} that equals 24, and explain each step."
    numbers = [(1 + i % 13, 1 + i // 13 % 13, 1 + i // 7 % 13, 1 + i * 5 % 13) for i in range(prompts)]
    return [Request(({"role": "user", "content": text.format(*each)},)) for each in numbers]


def _timed(checkpoints: Sequence[Path], prompts: int, tokens: int) -> tuple[float, dict[str, Any]]:
    command = [sys.executable, __file__, *map(str, checkpoints), "--score"]
    command += ["--prompts", str(prompts), "--tokens", str(tokens)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stderr}")
    return time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1])


def _rate(run: Callable[[], int]) -> float:
    start = time.perf_counter()
    return run() / (time.perf_counter() - start)


if __name__ == "__main__":  # the engine's processes import this file again
    main()
