"""What every model of a sweep is asked, and what cannot be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import EngineError, SweepError, TaskError
from evalkit.evaluation import Evaluation
from evalkit.progress import Silence
from evalkit.sweeps.loading import load
from evalkit.sweeps.scoring import Scoring, evaluations
from evalkit.sweeps.sweep import plan_sweep
from evalkit.task import Task
from tests.evalkit.sums import Sums
from tests.evalkit.sweeps.conftest import SPEC, TASK, Make, Pair

HANDS = {"task": "general_points", "n": 4, "engine": "transformers"}


def asked(changes: dict[str, Any] | None = None, own: Task | None = None, **keys: Any) -> list[Evaluation]:
    """The evaluations of a sweep whose `evaluation` has these keys."""
    return evaluations(*load({**SPEC, "evaluation": {**HANDS, **keys}}), changes or {}, own)


def test_one_evaluation_for_each_seed() -> None:
    """They differ in their seeds alone; what is not said is the task's."""
    first, second = asked(seeds=[3, 4], set={"target": 30})
    assert (first.seed, second.seed) == (3, 4)
    assert first.examples != second.examples
    assert first.task == second.task
    assert first.task.model_dump()["target"] == 30
    assert (first.splits, first.n, first.attempts, first.sampling.max_tokens) == (("id", "ood"), 4, 5, 256)
    assert (first.answers, first.loss) == (True, False)


def test_what_the_sweep_says() -> None:
    """Splits, attempts, temperature, tokens, part, plain text."""
    keys = {"attempts": 2, "temperature": 0.5, "max_tokens": 9, "part": "train", "chat": False, "splits": ["ood"]}
    (found,) = asked(**keys)
    assert (found.attempts, found.sampling.temperature, found.sampling.max_tokens) == (2, 0.5, 9)
    assert (found.part, found.chat, found.splits) == ("train", False, ("ood",))


def test_changes_replace_what_the_sweep_says() -> None:
    """Those that are None do not; another engine takes none of the options that were for the sweep's."""
    options = {"batch_size": 4}
    (found,) = asked({"n": 7, "engine": None}, engine_options=options)
    assert (len(found.examples), found.engine, found.options) == (14, "transformers", options)
    (found,) = asked({"engine": "vllm"}, engine_options=options)
    assert (found.engine, found.options) == ("vllm", {})
    (found,) = asked({"engine": "transformers", "engine_options": {"dtype": "float32"}}, engine_options=options)
    assert found.options == {"dtype": "float32"}
    (found,) = asked(own=Sums(top=5), task="anything")
    assert found.task == Sums(top=5)


def test_files_lie_beside_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt and a chat template are found there from any directory."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "prompt.jinja").write_text("Cards: {{ cards }}")
    (place / "chat.jinja").write_text("{{ messages }}")
    (place / "sweep.yaml").write_text(
        "name: x\nmodels: [base, sft]\nvariants: [{recipe: values-only}]\nevaluation:\n"
        "  {task: general_points, n: 4, engine: transformers, prompt: prompt.jinja, chat_template: chat.jinja}\n"
    )
    monkeypatch.chdir(tmp_path)
    (found,) = evaluations(*load("place/sweep.yaml"), {})
    assert found.template is not None
    assert found.template.text == "Cards: {{ cards }}"
    assert found.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"task": "general_point"}, TaskError, "unknown task `general_point`; did you mean `general_points`?"),
        ({"task": "lm_eval:arc"}, TaskError, "found the task `lm_eval:arc`; a sweep chooses on one half of a task's"),
        ({"set": {"cards": "many"}}, TaskError, "--set cards: found the text `many`; expected a whole number"),
        ({"splits": ["odd"]}, TaskError, "general_points has no split `odd`; did you mean `ood`?"),
        ({"engine": "openai:http://localhost"}, EngineError, "a server cannot be given variants as they are made"),
        ({"engine": "transformer"}, EngineError, "unknown engine `transformer`; did you mean `transformers`?"),
        ({"engine_options": {"batchsize": 1}}, EngineError, "batch_size"),
        ({"prompt": "nowhere.jinja"}, TaskError, "cannot read the prompt template `nowhere.jinja`"),
        ({"chat_template": "nowhere.jinja"}, TaskError, "found no file `nowhere.jinja` for `chat_template`; name one"),
        ({"chat_template": "."}, TaskError, "found no file `.` for `chat_template`"),
    ],
)
def test_what_cannot_be_asked(keys: dict[str, Any], error: type[Exception], message: str) -> None:
    """Each is one message, before any model is opened."""
    with pytest.raises(error) as caught:
        asked(**keys)
    assert message in str(caught.value)


def test_all_parts_of_a_sweep_are_checked_at_once(pair: Pair) -> None:
    """Variants, evaluation and models that are wrong are told together, with their places."""
    wrong = {**SPEC, "variants": [{"recipe": "values-onl"}], "evaluation": {"task": "sum"}}
    with pytest.raises(SweepError) as caught:
        plan_sweep(wrong, pair["base"])
    found = [str(fault) for fault in caught.value.faults]
    assert found[0].startswith("sweep variants[0].recipe: found neither a file nor a bundled recipe `values-onl`")
    assert found[1].startswith("sweep evaluation: unknown task `sum`; ")
    assert found[2] == "models: found 1; expected 2, for `base`, `sft`, in this order"
    assert len(found) == 3
    with pytest.raises(SweepError, match="models: found `base`, `rl`; expected 2, for `base`, `sft`"):
        plan_sweep({**SPEC, "evaluation": HANDS}, {"base": "a", "rl": "b"})


def test_models_and_plans_that_do_not_fit(pair: Pair, tmp_path: Path) -> None:
    """Every model that cannot be opened, and every candidate that cannot be planned, is named."""
    spec = {**SPEC, "evaluation": HANDS, "models": ["base", "sft", "rl"], "start": "sft", "averages": []}
    nowhere = {"base": tmp_path / "a", "sft": pair["sft"], "rl": tmp_path / "b"}
    with pytest.raises(SweepError) as caught:
        plan_sweep(spec, nowhere)
    assert [str(fault).split(":")[0] for fault in caught.value.faults] == ["model `base`", "model `rl`"]
    layers = {"recipe": "reset-first-quarter", "grid": {"layers": ["0", "5-9", "7"]}}
    with pytest.raises(SweepError) as caught:
        plan_sweep({**spec, "variants": [layers]}, {**pair, "rl": pair["sft"]})
    found = [str(fault) for fault in caught.value.faults]
    assert [text.split(": ")[0] for text in found] == [
        "`reset-first-quarter layers=5-9`", "`reset-first-quarter layers=7`"
    ]  # fmt: skip


def test_plans_are_made_from_headers_alone(pair: Pair) -> None:
    """What would be made, of what size, and how much is asked."""
    bound = plan_sweep({**SPEC, "evaluation": {**HANDS, "n": 10, "seeds": [0, 1]}}, pair)
    told = bound.json()
    assert told["examples"] == {"id": 20, "ood": 20}
    assert [row["name"] for row in told["variants"]][2:] == ["values-only", "wise-ft alpha=0.5"]
    size = (pair["sft"] / "model.safetensors").stat().st_size
    assert all(0 < row["bytes_written"] <= size for row in told["variants"])
    assert told["variants"][0]["flops"] > told["variants"][3]["flops"] > 0
    assert len({work.place for work in bound.works}) == len({work.key for work in bound.works}) == 4
    assert bound == plan_sweep({**SPEC, "evaluation": {**HANDS, "n": 10, "seeds": [0, 1]}}, pair)


def test_names_that_would_share_a_directory(pair: Pair) -> None:
    """Differ by a part of a digest, whatever else the sweep has; others do not change."""
    recipe = "restore-top-20pct"
    few = {
        **SPEC,
        "evaluation": HANDS,
        "averages": [],
        "variants": [{"recipe": recipe, "grid": {"head": ["20%", 20, 8]}}],
    }
    places = [work.place for work in plan_sweep(few, pair).works]
    assert places[2] == "restore-top-20pct-head-8"
    assert all(place.startswith("restore-top-20pct-head-20-") for place in places[:2])
    assert len(set(places)) == 3


def test_recall_needs_all_seeds(engine: Make, pair: Pair, tmp_path: Path) -> None:
    """What is known under one seed is not enough, nor what is known of fewer examples."""
    engine()
    one, two = (load({**SPEC, "evaluation": {**SPEC["evaluation"], "n": 4, "seeds": s}}) for s in ([0], [0, 1]))
    with Scoring(evaluations(*one, {}, TASK), tmp_path) as scoring:
        known = scoring.score("sft", pair["sft"], Silence())
        assert scoring.recall("a", known.model.digest) is not None
        assert scoring.recall("a", "0" * 16) is None
    with Scoring(evaluations(*one, {"n": 5}, TASK), tmp_path) as scoring:
        assert scoring.recall("a", known.model.digest) is None
    with Scoring(evaluations(*two, {}, TASK), tmp_path) as scoring:
        assert scoring.recall("a", known.model.digest) is None
        both = scoring.score("sft", pair["sft"], Silence())
        assert (both.generated, both.reused) == (8, 8)
        recalled = scoring.recall("sft", known.model.digest)
        assert recalled is not None
        assert recalled.samples == both.samples
        assert len({sample.index for sample in both.samples}) == 8
