"""What a pipeline is: stages, each one command of ours, and the experiments that their results belong to."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from blake3 import blake3
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from surgery.errors import RecipeError
from surgery.parameters import read_setting
from surgery.size import parse_size
from surgery.wording import show
from trainers.config import Section

TRAINERS = ("sft", "ppo", "grpo")
_COMMANDS = (*TRAINERS, "init", "data")  # of `surgery train`
RESUME = "--resume"
SEED = "$seed"
BASE, INTER, SFT, RL = "base", "inter", "sft", "rl"  # the models that the paper's numbers are about
Paper = Literal["llama", "qwen"]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SET = "--set"
_PROCESSES = ("--nproc-per-node", "--nproc_per_node", "--num_processes", "--num-processes")  # of torchrun, accelerate
_PATHS = ("chat_template", "file", "model", "prompt", "recipe")  # keys of sweeps and configurations with paths
_DIGEST = 16


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"found {show(name)}; expected a name of small letters, digits and `-`")
    return name


def _inside(path: str) -> str:
    """A path below the directory of a seed, in one spelling."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or pure.as_posix() != path:
        raise ValueError(f"found {show(path)}; expected a path below the seed's directory, such as `sft/final`")
    return path


def _size(value: object) -> object:
    return value if value is None or type(value) is int else parse_size(value)


Name = Annotated[str, AfterValidator(_name)]
Inside = Annotated[str, AfterValidator(_inside)]


class Stage(Section):
    """One command. Its words may hold `$seed`; paths are relative to the seed's directory."""

    name: Name = Field(description="the stage's name, one word")
    title: str = Field(description="what it does, in a few words")
    run: tuple[str | int | float, ...] = Field(min_length=1, description="the words after `surgery`")
    makes: Inside = Field(description="the file or directory that is there when it is done")
    needs: tuple[str, ...] = Field(
        default=(), description="stages to wait for, besides those whose results the command names"
    )
    launch: tuple[str | int, ...] = Field(
        default=(), description="words before `surgery`, such as `accelerate launch --module`"
    )

    @property
    def processes(self) -> int:
        """How many a launcher is told to start."""
        words = [str(word) for word in self.launch]
        found = [int(count) for name, count in pairwise(words) if name in _PROCESSES and count.isdecimal()]
        return max([1, *found])

    def words(self, seed: int) -> tuple[str, ...]:
        """What is typed after `surgery`; training goes on where it was, if it had begun."""
        words = [str(word).replace(SEED, str(seed)) for word in self.run]
        resumable = words[0] == "train" and words[1:2] and words[1] in TRAINERS
        return (*words, RESUME) if resumable and RESUME not in words else tuple(words)

    def shown(self, seed: int) -> str:
        """The command as one types it in the seed's directory."""
        return shlex.join([*map(str, self.launch), "surgery", *self.words(seed)])


class Machine(Section):
    """What the pipeline is meant for."""

    devices: int = Field(default=0, ge=0, description="GPUs that a launched stage trains on; 0: the processor")
    device_memory: Annotated[int | None, BeforeValidator(_size)] = Field(
        default=None, description="memory of each: `80GB`"
    )


class Experiment(Section):
    """What the report compares: the checkpoints of one model family, and where their results lie."""

    title: str = Field(description="how the report calls it")
    paper: Paper | None = Field(default=None, description="the model of the paper whose numbers stand beside it")
    models: dict[str, Inside] = Field(
        description="checkpoints by the names that sweeps call them by; `base`, `inter`, `sft` and `rl` are the paper's"
    )
    learned: dict[str, str] = Field(
        default_factory=dict, description="for a model of `models` that learned on from another, that other"
    )
    controls: tuple[str, ...] = Field(default=(), description="those of them that learned more answers instead of RL")
    losses: Inside | None = Field(default=None, description="the run of fine-tuning whose losses are shown")
    comparison: Inside | None = Field(default=None, description="the output of `surgery diff` base, sft, rl")
    scores: Inside | None = Field(default=None, description="the `--out` of `surgery eval`")
    sweeps: tuple[Inside, ...] = Field(default=(), description="the outputs of `surgery sweep`")


class Pipeline(Section):
    """A pipeline as it was read; made by `trainers.reproduce.loading.load`."""

    name: Name = Field(description="the pipeline's name")
    summary: str = Field(description="what it does, in a sentence")
    shows: tuple[str, ...] = Field(default=(), description="what its results can show, a sentence each")
    limits: tuple[str, ...] = Field(default=(), description="what they cannot show")
    machine: Machine = Field(default_factory=Machine, description="what it is meant for")
    shapes: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="for a dry run, transformers' configuration of checkpoints that no stage makes, or that one makes "
        "from nothing",
    )
    files: dict[Inside, dict[str, Any]] = Field(
        default_factory=dict, description="YAML files that the commands name, written to the seed's directory"
    )
    jobs: int = Field(
        default=1, ge=1, le=64, description="stages that may be at work at once, where none needs another's result"
    )
    stages: tuple[Stage, ...] = Field(min_length=1, description="what is done, in order")
    experiments: tuple[Experiment, ...] = Field(min_length=1, description="what the report compares")
    _text: str = PrivateAttr(default="")

    @property
    def text(self) -> str:
        """The YAML that it was read from."""
        return self._text

    def file(self, name: str, seed: int) -> dict[str, Any]:
        """The content of one of `files` for a seed."""
        content: dict[str, Any] = _seeded(self.files[name], seed)
        return content

    def files_of(self, stage: Stage) -> tuple[str, ...]:
        """The files that a stage's command names."""
        named = {str(word) for word in (*stage.run, *stage.launch)}
        return tuple(name for name in self.files if name in named)

    @cached_property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """For each stage those that it waits for, in order."""
        makers = {stage.name: stage.makes for stage in self.stages}
        found = {}
        for stage in self.stages:
            read = {made for made in makers.values() if made != stage.makes and self._reads(stage, made)}
            found[stage.name] = tuple(name for name in makers if makers[name] in read or name in stage.needs)
        return found

    def after(self, name: str) -> set[str]:
        """The stages that wait for this one, directly or not."""
        found: set[str] = set()
        for stage in self.stages:  # in order, so that what a stage needs has been seen before it
            if {name, *found}.intersection(self.needs[stage.name]):
                found.add(stage.name)
        return found

    def digest(self, stage: Stage, seed: int) -> str:
        """What a stage's result is kept under: its command and the files that it names."""
        work = [stage.launch, stage.words(seed), {name: self.file(name, seed) for name in self.files_of(stage)}]
        return blake3(json.dumps(work, sort_keys=True).encode()).hexdigest()[:_DIGEST]

    def _reads(self, stage: Stage, made: str) -> bool:
        """Whether the command, or a file that it names, names what another stage makes."""
        found = [
            *paths(arguments(stage.run)),
            *(path for name in self.files_of(stage) for path in _of(self.files[name])),
        ]
        return any(within(path, made) for path in found)


def arguments(words: Iterable[object]) -> list[str]:
    """The words after a command's name: `train data ppo` names a command, and no path."""
    first, *rest = map(str, words)
    while first == "train" and rest and rest[0] in _COMMANDS:
        rest = rest[1:]
    return rest


def within(path: str, made: str) -> bool:
    """Whether a path is what a stage makes, or lies in it."""
    return path == made or path.startswith(f"{made}/")


def paths(words: Iterable[str]) -> Iterator[str]:
    """The words of a command that can be paths; of `--set KEY=VALUE` what can be one in the value."""
    option = ""
    for word in words:
        name, _, value = word.partition("=") if word.startswith("--") else (option, "", word)
        option = word if word.startswith("--") and not value else ""
        if name == _SET:
            key, _, setting = value.partition("=")
            try:
                yield from _of(read_setting(setting, _SET)[0], key.strip().rpartition(".")[2])
            except RecipeError:  # which the command will say
                continue
        elif value:
            yield value


def _of(value: object, key: str = "") -> Iterator[str]:
    """The texts in plain data that can be paths: with a `/`, or under a key that holds paths.

    Other words may well be called as what a stage makes and be none: a sweep's models, a recipe's roles.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _of(item, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _of(item, key)
    elif isinstance(value, str) and ("/" in value or key in _PATHS):
        yield value


def _seeded(value: Any, seed: int) -> Any:
    """The data with the number in place of `$seed`."""
    if isinstance(value, dict):
        return {key: _seeded(item, seed) for key, item in value.items()}
    if isinstance(value, list):
        return [_seeded(item, seed) for item in value]
    return seed if value == SEED else value
