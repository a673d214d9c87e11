"""Training: fine-tuning through us against TRL alone, and PPO's update against the passes that it cannot do without.

    python benchmarks/training.py CHECKPOINT [--runs 3] [--steps 6] [--turns 16] [--only sft|ppo]

Both sides of a comparison take turns in one program, with the same network, data and batches, and as many threads as
there are processors. Prints times and ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig as Arguments
from trl import SFTTrainer

from evalkit.engines.loading import quiet
from evalkit.task import Example, Grade
from trainers import data
from trainers.api import load_config
from trainers.config import PpoConfig, SftConfig
from trainers.opening import Opened
from trainers.parent import load_network
from trainers.policy import collate
from trainers.ppo_learner import Learner
from trainers.precision import in_bfloat16
from trainers.progress import Silence
from trainers.rollout import Episode, Step
from trainers.sequences import encode_all
from trainers.sft import fine_tune

BATCH = 4
PROMPT, RESPONSE = 300, 64  # tokens of a turn
EPOCHS = 2


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="of fine-tuning")
    parser.add_argument("--turns", type=int, default=16, help="of PPO's update")
    parser.add_argument("--only", choices=["sft", "ppo"])
    options = parser.parse_args()
    with quiet():
        if options.only in (None, "sft"):
            sft(options.checkpoint, options.steps, options.runs)
        if options.only in (None, "ppo"):
            ppo(options.checkpoint, options.turns, options.runs)


def sft(checkpoint: Path, steps: int, runs: int) -> None:
    """The same steps by us and by TRL, each from its first step to a checkpoint on disk."""
    given = {
        "data": {"task": "general_points", "n": steps * BATCH},
        "device": "cpu",
        "batch_size": BATCH,
        "micro_batch_size": BATCH,
        "steps": steps,
    }
    records = []

    def ours() -> Callable[[], float]:
        directory = tempfile.TemporaryDirectory()
        config = load_config("sft", given, model=checkpoint, out=Path(directory.name) / "out")
        assert isinstance(config, SftConfig)
        opened = Opened("sft", config)
        records[:] = data.training_records(config.data, config.seed)
        session = opened.session(resume=False, overwrite=False, data={})
        network = load_network(opened.parent, config)
        recorder = opened.recorder(session, {})

        def run() -> float:
            learned = encode_all(opened.renderer, records, True, None, "data")
            fine_tune(config, (BATCH, 1), network, opened.renderer, learned, {}, recorder, Silence())
            rows = session.log.rows
            session.close()
            directory.cleanup()
            return float(rows[-1]["loss"])

        return run

    def theirs() -> Callable[[], float]:
        directory = tempfile.TemporaryDirectory()
        config = load_config("sft", given, model=checkpoint, out=directory.name)
        assert isinstance(config, SftConfig)
        opened = Opened("sft", config)
        network = load_network(opened.parent, config)

        def run() -> float:
            rows = [{"prompt": list(r.messages[:-1]), "completion": [r.messages[-1]]} for r in records]
            trainer = SFTTrainer(
                model=network,
                args=Arguments(
                    output_dir=directory.name, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=1e-6,
                    adam_beta2=0.98, adam_epsilon=1e-7, lr_scheduler_type="cosine", use_cpu=True,
                    bf16=in_bfloat16(config),
                    gradient_checkpointing=False, report_to=[], max_length=None, disable_tqdm=True, logging_steps=1,
                    save_strategy="no", dataloader_pin_memory=False, seed=config.seed,
                ),
                processing_class=opened.renderer.tokenizer,
                train_dataset=Dataset.from_list(rows),
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            trainer.save_model()
            directory.cleanup()
            return float([row["loss"] for row in trainer.state.log_history if "loss" in row][-1])

        return run

    times = _in_turns({"surgery train sft": ours, "TRL's SFTTrainer": theirs}, runs)
    print(f"{steps} steps of {BATCH} sequences")
    _print(times)


def ppo(checkpoint: Path, turns: int, runs: int) -> None:
    """One update's learning, and its passes alone: one forward to judge the turns, both for each turn and epoch."""
    given = {
        "data": {"task": "general_points"}, "device": "cpu", "updates": 1, "epochs": EPOCHS,
        "micro_batch_size": BATCH,
    }  # fmt: skip
    config = load_config("ppo", given, model=checkpoint, out="unused")
    assert isinstance(config, PpoConfig)
    parent = Opened("ppo", config).parent
    generator = torch.Generator().manual_seed(0)
    known = int(parent.checkpoint.config["vocab_size"])  # type: ignore[call-overload]
    ids = torch.randint(known, (turns, PROMPT + RESPONSE), generator=generator).tolist()
    steps = [
        Step(tuple(row[:PROMPT]), tuple(row[PROMPT:]), "", Grade("any", float(i % 3), "")) for i, row in enumerate(ids)
    ]
    episodes = [Episode(Example("id", i, str(i), {}), (step,)) for i, step in enumerate(steps)]

    def ours() -> Callable[[], float]:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16" if in_bfloat16(config) else "no")
        learner = Learner(config, load_network(parent, config), None, accelerator)

        def run() -> float:
            judged = learner.judge(episodes)
            return learner.learn(judged, 1, Silence())["policy_loss"]

        return run

    def passes() -> Callable[[], float]:
        network = load_network(parent, config)

        def forward(chosen: list[Step]) -> torch.Tensor:
            batch = collate([step.prompt for step in chosen], [step.response for step in chosen], 0, "cpu")
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16(config)):
                out = network(
                    input_ids=batch.ids[:, :-1], attention_mask=batch.mask[:, :-1], logits_to_keep=RESPONSE,
                    use_cache=False,
                )  # fmt: skip
            found: torch.Tensor = out.logits.float().log_softmax(-1).gather(-1, batch.ids[:, -RESPONSE:, None]).mean()
            return found

        def run() -> float:
            batches = [steps[i : i + BATCH] for i in range(0, turns, BATCH)]
            with torch.no_grad():
                for batch in batches:
                    forward(batch)
            for _ in range(EPOCHS):
                for batch in batches:
                    forward(batch).backward()
            return 0.0

        return run

    times = _in_turns({"PPO's update": ours, "its passes alone": passes}, runs)
    print(f"{turns} turns of {PROMPT} + {RESPONSE} tokens, {EPOCHS} epochs")
    _print(times)


def _in_turns(sides: dict[str, Callable[[], Callable[[], float]]], runs: int) -> dict[str, list[float]]:
    """Seconds of each run of each side, after one that does not count; making networks is not timed."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name, make in sides.items():
            run = make()
            began = time.perf_counter()
            result: Any = run()
            if number:
                times[name].append(time.perf_counter() - began)
            print(f"  {name}: {time.perf_counter() - began:.1f} s ({result:.4f})", flush=True)
    return times


def _print(times: dict[str, list[float]]) -> None:
    (ours, mine), (peer, theirs) = times.items()
    for name, found in times.items():
        print(f"  {name:20} {statistics.median(found):7.1f} s  ({min(found):.1f}-{max(found):.1f})")
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    print(f"  {ours} / {peer}: {statistics.median(ratios):.3f}  ({min(ratios):.3f}-{max(ratios):.3f})\n")


if __name__ == "__main__":
    main()
