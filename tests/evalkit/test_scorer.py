"""Never twice, never lost: what is kept, what is done again, and what is refused before anything is asked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import evalkit.scorer
from evalkit.engines.base import Model, Prompt, Sampling
from evalkit.errors import EngineError, TaskError
from evalkit.evaluation import Evaluation
from evalkit.progress import Silence
from evalkit.scorer import Scored, Scorer
from surgery.errors import CheckpointError
from tests.adapters.peft import factors, merged, write_adapter
from tests.evalkit.fake_engine import FakeEngine, text
from tests.evalkit.sums import Sums
from tests.tiny_models import save_tiny

EVALUATION = Evaluation(Sums(), "fake", ("id", "ood"), n=5, attempts=2, loss=True)

Fake = Callable[..., FakeEngine]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with tokenizer and chat template."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def models(tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints that differ in one weight."""
    a, b = (Path(shutil.copytree(tiny, tmp_path / name)) for name in "ab")
    change(b)
    return a, b


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Makes the engine that the next scorer gets; by default `a` is always right and other models never are."""

    def make(**options: int) -> FakeEngine:
        engine = FakeEngine(answer, **options)
        monkeypatch.setattr(evalkit.scorer, "make_engine", lambda *_: engine)
        return engine

    return make


def answer(model: str, prompt: Prompt) -> str:
    a, b = map(int, re.findall(r"[0-9]+", text(prompt))[:2])
    return str(a + b) if model.endswith("a") else "0"


def change(directory: Path) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, path, metadata={"format": "pt"})


def score(out: Path, *models: Path, evaluation: Evaluation = EVALUATION) -> list[Scored]:
    with Scorer(evaluation, out) as scorer:
        return scorer.score(models)


def asked(engine: FakeEngine) -> int:
    return sum(map(len, engine.batches))


def test_scores(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """Each model answers each example of both splits, in one engine, which is closed in the end."""
    engine = fake()
    a, b = score(tmp_path / "out", *models)
    assert [model.name for model in engine.loaded] == [str(models[0]), str(models[1])]
    assert [(s.split, s.index) for s in a.samples] == [(split, i) for split in ("id", "ood") for i in range(5)]
    assert all(sample.correct for sample in a.samples)
    assert not any(sample.correct for sample in b.samples)
    assert [len(batch) for batch in engine.batches] == [10, 10, 10]
    assert len(a.losses) == 10
    assert len(engine.scored) == 20
    assert a.generated == b.generated == 20
    assert engine.closed


def test_finished_work_costs_nothing(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """The second time no model is loaded, nothing is asked, and the results are the same."""
    fake()
    before = score(tmp_path / "out", *models)
    engine = fake()
    after = score(tmp_path / "out", *models)
    assert engine.loaded == []
    assert asked(engine) == 0
    assert [s.samples for s in after] == [s.samples for s in before]
    assert [s.losses for s in after] == [s.losses for s in before]
    assert [s.generated for s in after] == [0, 0]


@pytest.mark.parametrize("die_after", range(1, 30, 4))
def test_a_run_that_dies_goes_on(models: tuple[Path, Path], fake: Fake, tmp_path: Path, die_after: int) -> None:
    """Wherever the engine breaks, what was finished is not asked again, and the outcome is that of one run."""
    fake()
    whole = score(tmp_path / "whole", *models)
    broken = fake(die_after=die_after)
    with pytest.raises(RuntimeError):
        score(tmp_path / "out", *models)
    kept = sum(path.read_bytes().count(b"\n") for path in (tmp_path / "out").rglob("samples.jsonl"))
    resumed = fake()
    again = score(tmp_path / "out", *models)
    assert broken.closed
    # `a` needs one answer an episode, `b` two
    assert kept == (die_after if die_after <= 10 else 10 + max(0, die_after - 20))
    assert asked(resumed) == 30 - die_after
    assert [s.samples for s in again] == [s.samples for s in whole]


def test_a_changed_checkpoint_is_scored_anew(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """New weights under the old path get results of their own; the old weights still have theirs."""
    a, b = models
    fake()
    score(tmp_path / "out", a)
    shutil.copy(b / "model.safetensors", a / "model.safetensors")
    engine = fake()
    score(tmp_path / "out", a)
    assert asked(engine) == 10


def test_a_renamed_checkpoint_is_not(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """The same content elsewhere is known, within a run as well as between runs; a report uses the new name."""
    a, _ = models
    other = Path(shutil.copytree(a, tmp_path / "other-a"))
    engine = fake()
    both = score(tmp_path / "out", a, other)
    assert asked(engine) == 10
    assert [scored.model.name for scored in both] == [str(a), str(other)]
    assert [scored.generated for scored in both] == [20, 0]


def test_more_examples_add_to_the_first(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """A larger n asks only for what is new; another split likewise."""
    fake()
    score(tmp_path / "out", models[0])
    engine = fake()
    more = Evaluation(Sums(), "fake", ("id", "ood"), n=8, attempts=2)
    assert len(score(tmp_path / "out", models[0], evaluation=more)[0].samples) == 16
    assert asked(engine) == 6


def test_the_engine_goes_on(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """Models may come in several calls of one scorer."""
    engine = fake()
    with Scorer(EVALUATION, tmp_path / "out") as scorer:
        scorer.score([models[0]])
        assert not engine.closed
        scorer.score([models[1]])
    assert len(engine.loaded) == 2


def test_samples_are_lines_of_json(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """A line names task, split, index, model, prompt, completions, grades, reward and whether it was correct."""
    fake()
    score(tmp_path / "out", models[1])
    (path,) = (tmp_path / "out").rglob("samples.jsonl")
    first = json.loads(path.read_text().splitlines()[0])
    assert {"id", "task", "split", "index", "model", "prompt", "completions", "grades", "reward", "correct"} <= set(
        first
    )
    assert first["completions"] == ["0", "0"]
    assert first["grades"][1]["kind"] == "wrong value"


@pytest.mark.parametrize("change", [{"grades": None}, {"reward": None, "score": 1}, {"key": "another problem"}])
def test_lines_of_another_form_are_done_again(
    models: tuple[Path, Path], fake: Fake, tmp_path: Path, change: dict[str, object]
) -> None:
    """A line that this version did not write, or wrote of another example, costs that example alone."""
    fake()
    before = score(tmp_path / "out", models[0])
    (path,) = (tmp_path / "out").rglob("samples.jsonl")
    first, *rest = map(json.loads, path.read_text().splitlines())
    kept = {key: value for key, value in {**first, **change}.items() if value is not None}
    path.write_text("".join(json.dumps(row) + "\n" for row in [kept, *rest]))
    engine = fake()
    after = score(tmp_path / "out", models[0])
    assert asked(engine) == 1
    assert after[0].samples == before[0].samples


def test_refusals_come_first(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """Whatever is wrong with the last model is said before the first is asked."""
    a, b = models
    (b / "tokenizer.json").unlink()
    engine = fake()
    with pytest.raises(EngineError, match="has no tokenizer"):
        score(tmp_path / "out", a, b)
    with pytest.raises(TaskError, match="twice"):
        score(tmp_path / "out", a, a)
    with pytest.raises(EngineError, match="single file; give the directory"):
        score(tmp_path / "out", a, b / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        score(tmp_path / "out", a, tmp_path / "nowhere")
    assert engine.loaded == []


def test_every_prompt_is_checked_first(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """A context without room, for a prompt and an answer or for a reference, is told before the first is asked."""
    a, b = models
    short = save_tiny(tmp_path / "short", context=90)
    engine = fake()
    with pytest.raises(TaskError, match=r"short`: the prompt of example 0 of `id` has \d+ tokens, and with 256 for"):
        score(tmp_path / "out", a, short)
    brief = Evaluation(Sums(), "fake", ("id", "ood"), n=5, attempts=2, loss=True, sampling=Sampling(max_tokens=1))
    nearly = save_tiny(tmp_path / "nearly", context=53)
    with pytest.raises(
        TaskError, match=r"nearly`: the prompt of example \d of `\w+` has \d+ tokens, and with [2-9] for"
    ):
        score(tmp_path / "out", b, nearly, evaluation=brief)
    assert engine.loaded == []


def test_a_check_asks_nothing(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """It finds out what `score` would before the first answer."""
    a, b = models
    engine = fake()
    with Scorer(EVALUATION, tmp_path / "out") as scorer:
        scorer.check([a])
        scorer.check([a, b])
        with pytest.raises(CheckpointError, match="does not exist"):
            scorer.check([b, tmp_path / "nowhere"])
        (b / "tokenizer.json").unlink()
        with pytest.raises(EngineError, match="has no tokenizer"):
            scorer.check([b])
    assert engine.loaded == []


def test_without_answers_only_losses(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """Nothing is generated, and nothing of answers is kept; with answers later, those alone are missing."""
    engine = fake()
    lossy = replace(EVALUATION, answers=False)
    (found,) = score(tmp_path / "out", models[0], evaluation=lossy)
    assert (found.samples, len(found.losses), found.generated) == ((), 10, 10)
    assert asked(engine) == 0
    assert [path.name for path in (tmp_path / "out").rglob("*.jsonl")] == ["losses.jsonl"]
    (both,) = score(tmp_path / "out", models[0])
    assert (len(both.samples), both.losses, both.generated) == (10, found.losses, 10)


def test_an_engine_that_is_shared(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """Whoever gave it ends it, and says what it holds; it is loaded with the largest context that any of them needs."""
    engine = fake()
    contexts = []
    engine.load = lambda model, context: contexts.append((model.name, context))  # type: ignore[method-assign]
    engine.loaded = [Model("a", "", None)]
    others = replace(EVALUATION, seed=1)
    with Scorer(EVALUATION, tmp_path / "out", engine=engine, context=10**6) as first:
        (known,) = first.score([models[0]])
    with Scorer(others, tmp_path / "out", engine=engine) as second:
        second.score([models[0]], held=known.model.digest)
        second.score([models[1]], held=known.model.digest)
    assert not engine.closed
    assert contexts == [(str(models[0]), 10**6), (str(models[1]), others.context)]


def test_what_is_recalled(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """All that was found of a checkpoint that is gone, or nothing where an answer is missing."""
    fake()
    (known,) = score(tmp_path / "out", models[0])
    engine = fake()
    with Scorer(EVALUATION, tmp_path / "out") as scorer:
        recalled = scorer.recall(Model("gone", known.model.digest, None))
        assert scorer.recall(Model("gone", "0" * 16, None)) is None
    with Scorer(replace(EVALUATION, n=6), tmp_path / "out") as scorer:
        assert scorer.recall(Model("gone", known.model.digest, None)) is None
    assert recalled is not None
    assert (recalled.model.name, recalled.samples, recalled.losses) == ("gone", known.samples, known.losses)
    assert engine.loaded == []


def test_losses_that_an_engine_cannot_tell(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """That too is told before the first is asked."""
    engine = fake()
    engine.scores = False  # type: ignore[misc] # of this one
    with pytest.raises(EngineError, match="leave out `--loss`"):
        score(tmp_path / "out", *models)


def test_a_checkpoint_that_changes_meanwhile(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """What a trainer writes over while others are scored is not kept under the old digest."""
    a, b = models
    engine = fake()
    load = engine.load

    def loading(model: Model, context: int) -> None:
        load(model, context)
        if model.name.endswith("a"):
            change(b)

    engine.load = loading  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="was changed after this run had begun"):
        score(tmp_path / "out", a, b)
    assert asked(engine) == 10  # those of `a`, which are kept


def test_the_same_model_again(models: tuple[Path, Path], fake: Fake, tmp_path: Path) -> None:
    """A scorer may be given a model that it has scored; its results are there."""
    engine = fake()
    with Scorer(EVALUATION, tmp_path / "out") as scorer:
        first, again = (scorer.score([models[0]])[0] for _ in range(2))
    assert first.samples == again.samples
    assert again.generated == 0
    assert asked(engine) == 10


def test_no_chat_template(tiny: Path, fake: Fake, tmp_path: Path) -> None:
    """A checkpoint without chat template is refused with both ways out; as plain text it is scored."""
    plain = save_tiny(tmp_path / "a", chat_template=None)
    fake()
    with pytest.raises(EngineError, match=r"no chat template; .*--chat-template FILE.*--no-chat"):
        score(tmp_path / "out", tiny, plain)
    done = score(tmp_path / "out", plain, evaluation=Evaluation(Sums(), "fake", ("id", "ood"), n=2, chat=False))
    assert all(sample.correct for sample in done[0].samples)


@pytest.mark.parametrize("values", [{"n": 0}, {"attempts": 0}, {"splits": ("id", "id")}, {"splits": ()}])
def test_settings_without_sense(values: dict[str, int]) -> None:
    """Nothing is asked zero times or twice."""
    with pytest.raises(TaskError, match="found"):
        Evaluation(Sums(), "fake", **({"splits": ("id",)} | values))  # type: ignore[arg-type]


class Notes(Silence):
    """Keeps what a user is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        """Something that a user should know."""
        self.told.append(text)


class Looking(FakeEngine):
    """Keeps the weights of what it loads, and what then lies beside them."""

    def __init__(self) -> None:
        super().__init__(answer)
        self.weights: list[dict[str, torch.Tensor]] = []
        self.beside: list[set[str]] = []

    def load(self, model: Model, context: int) -> None:
        """Read it all."""
        super().load(model, context)
        assert model.path is not None
        self.weights.append(load_file(model.path / "model.safetensors"))
        self.beside.append({path.name for path in model.path.parent.iterdir()})


def test_models_with_adapters_are_merged_one_at_a_time(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MODEL+ADAPTER` is scored as the checkpoint that both make, under its own name; then that is removed."""
    base = load_file(tiny / "model.safetensors")
    scales = {"one": 1.0, "two": -1.0}
    adapters = {name: {key: c * W for key, W in factors(base).items()} for name, c in scales.items()}
    models = [f"{tiny}+{write_adapter(tmp_path / name, found)}" for name, found in adapters.items()]
    engine, notes = Looking(), Notes()
    monkeypatch.setattr(evalkit.scorer, "make_engine", lambda *_: engine)
    with Scorer(EVALUATION, tmp_path / "out", notes) as scorer:
        scored = scorer.score(models)
    assert [each.model.name for each in scored] == models
    assert [len(each.samples) for each in scored] == [10, 10]
    for made, found, beside in zip(engine.weights, adapters.values(), engine.beside, strict=True):
        for name, W in merged(base, found).items():
            torch.testing.assert_close(made[name].double(), W, rtol=1e-2, atol=1e-2)
        assert any(not torch.equal(W, base[name]) for name, W in made.items())
        assert len(beside) == 1
    assert not (tmp_path / "out/models").exists()
    assert ["while it is scored" in told for told in notes.told] == [True, True]
    again = Notes()
    with Scorer(EVALUATION, tmp_path / "out", again) as scorer:
        second = scorer.score(models)
    assert [(each.samples, each.generated) for each in second] == [(each.samples, 0) for each in scored]
    assert (len(engine.loaded), again.told) == (2, [])


def test_an_adapters_scale_belongs_to_its_content(tiny: Path, tmp_path: Path, fake: Fake) -> None:
    """Another configuration of the same tensors is another model, which is told apart and scored anew."""
    base = load_file(tiny / "model.safetensors")
    model = f"{tiny}+{write_adapter(tmp_path / 'lora', factors(base))}"
    engine = fake()
    digests = []
    for alpha in (8, 32):
        path = tmp_path / "lora/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": alpha}))
        with Scorer(EVALUATION, tmp_path / "out") as scorer:
            digests += [scored.model.digest for scored in scorer.score([model])]
    assert len(engine.loaded) == len({*digests}) == 2


def test_what_cannot_be_merged_is_told_before_anything_is_asked(tiny: Path, tmp_path: Path, fake: Fake) -> None:
    """Not when the models before it have been scored for an hour."""
    base = load_file(tiny / "model.safetensors")
    strange = write_adapter(tmp_path / "lora", {f"x{name}": W for name, W in factors(base).items()})
    engine = fake()
    with Scorer(EVALUATION, tmp_path / "out") as scorer, pytest.raises(CheckpointError):
        scorer.score([tiny, f"{tiny}+{strange}"])
    assert engine.loaded == []
