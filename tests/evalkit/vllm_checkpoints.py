"""A program: one VllmEngine, four pairs of tiny checkpoints in the directory given; what came out, as a line of JSON.

Then it goes on with the engine running, until it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from evalkit.engines.base import Model, Request, Sampling
from evalkit.engines.vllm import VllmEngine
from evalkit.errors import EngineError

CONTEXT = 256  # tokens, fewer than the models have
LONG = "The quick brown fox jumps" * 7  # more than a block of vLLM's cache of common beginnings, which has 128 tokens
PROMPTS = ["What is 7 times 8?", "a", LONG]
ANSWERS = ["56", "bcdef", " over the lazy dog."]
GREEDY = Sampling(max_tokens=24)
DRAWN = Sampling(temperature=1.0, max_tokens=24)


def chat(text: str) -> tuple[dict[str, str], ...]:
    """A conversation of one message."""
    return ({"role": "user", "content": text},)


class Program:
    """One engine and what it did."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.engine = VllmEngine({"max_num_seqs": "8"})
        self.result: dict[str, Any] = {"history": []}

    def load(self, name: str, note: str) -> None:
        """Load a checkpoint, and note how it came in and what it answers, each prompt in a batch of its own."""
        self.engine.load(Model(name, name, self.directory / name), CONTEXT)
        self.result["history"].append([name, self.engine.starts, self.engine.swaps])
        answers = [self.answer(GREEDY, [prompt])[0] for prompt in PROMPTS]
        scores = [
            [[each.logprob, each.greedy] for each in found]
            for pair in zip(map(chat, PROMPTS), ANSWERS, strict=True)
            for _, found in self.engine.score([pair], end=True)
        ]
        self.result["tokens"] = self.tokens()
        self.result[note] = {"answers": answers, "scores": scores}

    def answer(self, sampling: Sampling, prompts: list[str], seed: int = 0) -> list[list[Any]]:
        """Answers in the order of the prompts: text, finish, tokens."""
        requests = [Request(chat(prompt), seed + i) for i, prompt in enumerate(prompts)]
        found = dict(self.engine.generate(requests, sampling))
        return [[found[i].text, found[i].finish, found[i].tokens] for i in range(len(prompts))]

    def tokens(self) -> list[list[Any]]:
        """Of the prompts and of the greedy answers."""
        found = dict(self.engine.generate([Request(chat(prompt)) for prompt in PROMPTS], GREEDY))
        return [[list(found[i].prompt_ids), list(found[i].ids)] for i in range(len(PROMPTS))]

    def batches(self) -> None:
        """What must not depend on the batch, and what a batch leaves behind."""
        engine, result = self.engine, self.result
        result["drawn alone"] = self.answer(DRAWN, PROMPTS[1:2], seed=5)[0]
        result["drawn among others"] = self.answer(DRAWN, [PROMPTS[0], PROMPTS[1], *PROMPTS[::-1] * 3], seed=4)[1]
        result["drawn otherwise"] = self.answer(DRAWN, PROMPTS[1:2], seed=6)[0]
        result["together"] = self.answer(GREEDY, PROMPTS)
        first = engine.generate([Request(chat(prompt)) for prompt in PROMPTS * 5], GREEDY)
        with closing(cast("Generator[Any, None, None]", first)):
            next(first)
        result["after a batch that was closed"] = self.answer(GREEDY, PROMPTS)
        dropped = engine.generate([Request(chat(prompt)) for prompt in PROMPTS * 5], GREEDY)
        next(dropped)
        result["after a batch that was left"] = self.answer(GREEDY, PROMPTS)
        try:
            list(dropped)
        except EngineError as error:
            result["of the batch that was left"] = str(error)
        stop = result["together"][2][0][5:8]
        result["stop"] = stop
        result["stopped"] = self.answer(Sampling(max_tokens=24, stop=(stop, "\0")), PROMPTS)
        long = [Request("a"), Request("b" * 1020), Request("c" * 2000), Request("d")]
        result["room"] = [(i, each.finish) for i, each in engine.generate(long, Sampling(max_tokens=5))]


def processes(top: int) -> list[int]:
    """The processes below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found = {top}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {top})


def vllm_processes() -> list[int]:
    """Those of vLLM among them."""
    return [pid for pid in processes(os.getpid()) if b"VLLM" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def main() -> None:
    """Three starts, then one after a sudden death."""
    program = Program(Path(sys.argv[1]))
    engine, result = program.engine, program.result
    program.load("tied0", "tied0, fresh")
    program.load("tied1", "tied1, put in")
    program.load("tied0", "tied0, put in again")
    before = vllm_processes()
    program.load("plain1", "plain1, fresh")
    result["ended"] = [len(before), len(set(before) & set(processes(os.getpid())))]
    program.load("plain0", "plain0, put in")
    program.batches()
    program.load("tied1", "tied1, fresh")
    victim = next(pid for pid in vllm_processes() if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes())
    running = engine.generate([Request(chat(prompt)) for prompt in PROMPTS * 20], Sampling(max_tokens=60))
    next(running)
    os.kill(victim, signal.SIGKILL)
    try:
        list(running)
    except EngineError as error:
        result["death"] = str(error)
    result["after death"] = len(vllm_processes())
    program.load("plain0", "plain0, fresh")
    result["processes"] = processes(os.getpid())
    print(json.dumps(result), flush=True)
    time.sleep(600)


if __name__ == "__main__":  # the engine's processes import this file again
    main()
