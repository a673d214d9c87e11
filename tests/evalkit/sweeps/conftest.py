"""Tiny models to be swept, an engine whose answers depend on their weights, and a progress that remembers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import evalkit.sweeps.scoring
import evalkit.sweeps.sweep
from evalkit.engines.base import Prompt
from evalkit.progress import Silence
from evalkit.sweeps.sweep import sweep
from surgery.plan import Plan, TensorPlan
from tests.evalkit.fake_engine import FakeEngine, text
from tests.evalkit.sums import Sums
from tests.tiny_models import save_tiny

SPEC: dict[str, Any] = {
    "name": "tries",
    "models": ["base", "sft"],
    "variants": [
        {"recipe": "restore-top-20pct-rotate", "grid": {"head": ["10%", "50%"]}},
        {"recipe": "values-only"},
    ],
    "averages": [0.5],
    "evaluation": {"task": "sums", "n": 24, "attempts": 1, "engine": "fake"},
}
TASK = Sums()

Pair = dict[str, Path]
Skill = Callable[[Path, bool], float]
Sweeping = Callable[..., Any]
Make = Callable[..., "WeighedEngine"]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base and an SFT checkpoint of random weights."""
    place = tmp_path_factory.mktemp("pair")
    return {name: save_tiny(place / name, seed) for seed, name in enumerate(("base", "sft"))}


class WeighedEngine(FakeEngine):
    """Right as often as a model's weights say: `skill` gives the share for the loaded directory and a split's size.

    `answers` counts what each directory was asked.
    """

    def __init__(self, skill: Skill, die_after: int | None = None) -> None:
        super().__init__(self._say, die_after)
        self.skill = skill
        self.answers: Counter[str] = Counter()

    def _say(self, model: str, prompt: Prompt) -> str:
        self.answers[Path(model).name] += 1
        a, b = map(int, re.findall(r"[0-9]+", text(prompt))[:2])
        share = self.skill(Path(model), max(a, b) >= 100)
        return str(a + b) if (a * 31 + b * 17) % 100 < 100 * share else "0"


def nearness(directory: Path, large: bool) -> float:
    """A share that depends on the weights: large sums are the better solved the smaller the first weight is."""
    weights = load_file(directory / "model.safetensors")
    mean = float(weights["model.layers.0.mlp.up_proj.weight"].float().abs().mean()) * 1000
    return 0.2 + 0.6 * ((mean * (3 if large else 7)) % 1)


def by_name(**shares: tuple[float, float]) -> Skill:
    """Shares of small and of large sums for directories whose names begin so; 0 for others."""

    def skill(directory: Path, large: bool) -> float:
        return next((both[large] for name, both in shares.items() if directory.name.replace("-", "_") == name), 0.0)

    return skill


def drawn(_: Any, out: Path) -> tuple[Path, ...]:
    """In place of the figure, which takes as long as the rest."""
    for kind in ("png", "svg"):
        (out / f"pareto.{kind}").write_text("<svg/>")
    return out / "pareto.png", out / "pareto.svg"


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page with an empty figure; see `drawn`."""
    monkeypatch.setattr(evalkit.sweeps.sweep, "draw_pareto", drawn)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes the engine that the next sweeps get."""

    def make(skill: Skill = nearness, **options: Any) -> WeighedEngine:
        made = WeighedEngine(skill, **options)
        monkeypatch.setattr(evalkit.sweeps.scoring, "make_engine", lambda *_: made)
        return made

    return make


class Told(Silence):
    """Progress of a sweep: what it was told, in order, and how many tensors were made."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.tensors = 0

    def begin(self, *counts: Any) -> None:
        if len(counts) == 3:
            models, variants, known = counts
            self.said.append(f"{models} models, {variants} variants, {known} known")
        else:
            assert isinstance(counts[0], Plan)

    @contextmanager
    def making(self, variants: int) -> Iterator[Any]:
        self.said.append(f"making {variants}")
        yield _Tensors(self)

    @contextmanager
    def scoring(self, name: str) -> Iterator[Silence]:
        self.said.append(name)
        yield Silence()


class _Tensors:
    def __init__(self, told: Told) -> None:
        self._told = told

    def begin(self, plan: Plan) -> None:
        assert plan.tensors

    def finished(self, tensor: TensorPlan, resumed: bool) -> None:
        assert tensor
        self._told.tensors += not resumed

    def stopping(self) -> None:
        raise AssertionError

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture
def sweeping(pair: Pair, tmp_path: Path) -> Sweeping:
    """`sweeping(SPEC, "out", keep="all")` sweeps the pair."""

    def run(spec: Any = None, out: str = "out", models: Any = None, **options: Any) -> Any:
        return sweep(spec or SPEC, models or pair, tmp_path / out, **({"task": TASK, "workers": 1} | options))

    return run
