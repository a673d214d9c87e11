from __future__ import annotations

import functools
import json
import logging
import math
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file

from evalkit.engines.base import Completion, Engine, Model, Prompt, Request, Sampling, TokenScore
from evalkit.errors import EngineError, TaskError

with warnings.catch_warnings():  # what other people's packages warn of while they are imported
    warnings.simplefilter("ignore")
    pytest.importorskip("lm_eval")
    import datasets
    import lm_eval.evaluator
    import lm_eval.tasks

import evalkit.api
from evalkit.api import evaluate
from evalkit.harness import Harness
from evalkit.harness_model import HarnessModel
from evalkit.run import seed_of
from tests.adapters.peft import factors, write_adapter
from tests.tiny_models import save_tiny

CHOICES = [
    {"q": "sky", "choices": ["blue", "red hot"], "gold": 0},
    {"q": "fire", "choices": ["blue", "red hot"], "gold": 1},
    {"q": "sea", "choices": ["blue", "red hot"], "gold": 0},
]
SUMS = [{"q": "1+1", "a": "2"}, {"q": "2+2", "a": "4"}, {"q": "3+3", "a": "6"}, {"q": "4+4", "a": "8"}]


class Oracle(Engine):
    """Answers and scores by tables; a token is a character, and keeps what it was asked."""

    name: ClassVar[str] = "oracle"

    def __init__(self, answers: Mapping[str, str] | None = None, scores: Mapping[tuple[str, str], float] | None = None):
        self.answers, self.scores = answers or {}, scores or {}
        self.asked: list[tuple[Any, ...]] = []
        self.dies_after = math.inf
        self.loaded: list[Model] = []
        self.weights: list[bytes] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {}

    def versions(self) -> Mapping[str, str]:
        return {}

    def load(self, model: Model, context: int) -> None:  # noqa: ARG002 - the interface's
        self.loaded.append(model)
        assert model.path is not None
        self.weights.append((model.path / "model.safetensors").read_bytes())

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        for i, request in reversed(list(enumerate(requests))):
            if len(self.asked) >= self.dies_after:
                raise EngineError("the engine has died")
            self.asked.append((request.prompt, request.seed, sampling))
            text = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
            answer = self.answers.get(text.split("\n")[-2].removeprefix("Q: ") if "\n" in text else text)
            finish = "stop" if answer is not None else "context"
            yield i, Completion(answer or "", finish, len(text), len(answer or ""))  # type: ignore[arg-type]

    def score(self, prompts: Sequence[tuple[Prompt, str]], end: bool) -> Iterator[tuple[int, list[TokenScore]]]:
        assert not end
        for i, (prompt, answer) in reversed(list(enumerate(prompts))):
            self.asked.append((prompt, answer))
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            total = self.scores.get((text, answer), -10.0)
            yield i, [TokenScore(total / 2, total > -1), TokenScore(total / 2, True)]

    def close(self) -> None: ...


class Kept(dict[str, dict[str, Any]]):
    """A journal in memory, which gives back what JSON keeps."""

    def put(self, name: str, row: Mapping[str, Any]) -> None:
        assert name not in self
        self[name] = json.loads(json.dumps(row))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and data sets kept where the test is."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def task_file(tmp_path: Path, name: str, records: Sequence[Mapping[str, Any]], text: str) -> str:
    data = tmp_path / f"{name}.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    path = tmp_path / f"{name}.yaml"
    head = f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    path.write_text(head + text + "metadata:\n  version: 2.0\n")
    return str(path)


@pytest.fixture
def colours(tmp_path: Path) -> str:
    return task_file(
        tmp_path,
        "colours",
        CHOICES,
        'output_type: multiple_choice\ndoc_to_text: "Q: {{q}}\\nA:"\ndoc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{gold}}"\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n',
    )


@pytest.fixture
def sums(tmp_path: Path) -> str:
    return sums_file(tmp_path)


def sums_file(tmp_path: Path, options: str = "  do_sample: false\n", more: str = "") -> str:
    return task_file(
        tmp_path,
        "sums",
        SUMS,
        'output_type: generate_until\ndoc_to_text: "Q: {{q}}\\nA:"\ndoc_to_target: "{{a}}"\nmetric_list:\n'
        "  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
        f'generation_kwargs:\n  until:\n    - "\\n"\n    - "END"\n  max_gen_toks: 9\n{options}{more}',
    )


def blue(text: str = "Q: {}\nA:", space: str = " ") -> Oracle:
    """Finds blue likelier, but not by character, where a text of nearly twice the length wins."""
    scores = {}
    for q in ("sky", "fire", "sea"):
        scores[text.format(q), f"{space}blue"] = -4.0 if q != "sea" else -0.5
        scores[text.format(q), f"{space}red hot"] = -5.0
    return Oracle(scores=scores)


def test_multiple_choice_is_scored_exactly(colours: str):
    """acc: two of three; acc_norm (by characters): fire and sea; standard errors, documents and n are there."""
    engine, kept = blue(), Kept()
    outcome = Harness(colours).run(engine, kept)
    acc, norm = outcome.metrics
    assert (acc.task, acc.name, acc.value, acc.n, acc.higher_is_better) == ("colours", "acc", 2 / 3, 3, True)
    assert acc.per_document == {"0": 1.0, "1": 0.0, "2": 1.0}
    assert acc.stderr == pytest.approx(math.sqrt((2 / 3 * 1 / 3) / 2))
    assert norm.per_document == {"0": 0.0, "1": 1.0, "2": 1.0}
    assert (outcome.generated, outcome.reused, outcome.no_room) == (6, 0, 0)
    assert ("Q: sky\nA:", " red hot") in engine.asked
    again = Harness(colours).run(Oracle(), kept)
    assert again.metrics == outcome.metrics
    assert (again.generated, again.reused) == (0, 6)


def test_generation_is_scored_exactly(sums: str):
    """Answers are cut at the stop texts; one without room counts as wrong and is told."""
    engine = Oracle({"1+1": "2", "2+2": "4END more", "3+3": "7"})
    outcome = Harness(sums).run(engine, Kept())
    (metric,) = outcome.metrics
    assert (metric.name, metric.value, metric.n) == ("exact_match", 0.5, 4)
    assert metric.per_document == {"0": 1.0, "1": 1.0, "2": 0.0, "3": 0.0}
    assert outcome.no_room == 1
    assert {sampling for _, _, sampling in engine.asked} == {Sampling(0.0, 9, ("\n", "END"))}


def test_each_filter_has_a_metric_of_its_own(tmp_path: Path):
    """Two ways of reading an answer give two metrics, each with its own documents' scores."""
    filters = """filter_list:
  - name: strict
    filter:
      - function: regex
        regex_pattern: "^([0-9])$"
      - function: take_first
  - name: loose
    filter:
      - function: regex
        regex_pattern: "([0-9])"
      - function: take_first
"""
    engine = Oracle({"1+1": "2", "2+2": "It is 4", "3+3": "7", "4+4": "9"})
    strict, loose = Harness(sums_file(tmp_path, more=filters)).run(engine, Kept()).metrics
    assert (strict.name, strict.value) == ("exact_match (strict)", 0.25)
    assert (loose.name, loose.value) == ("exact_match (loose)", 0.5)
    assert strict.per_document == {"0": 1.0, "1": 0.0, "2": 0.0, "3": 0.0}


def test_greedy_needs_every_token(tmp_path: Path):
    """A continuation is what greedy decoding gives only if each of its tokens is the likeliest."""
    path = task_file(
        tmp_path,
        "last_words",
        [{"q": "a", "w": "b"}, {"q": "c", "w": "d"}],
        'output_type: loglikelihood\ndoc_to_text: "{{q}}"\ndoc_to_target: " {{w}}"\nmetric_list:\n  - metric: acc\n',
    )
    engine = Oracle(scores={("a", " b"): -0.5, ("c", " d"): -3.0})  # its first token is likeliest above -1
    (acc,) = Harness(path).run(engine, Kept()).metrics
    assert acc.per_document == {"0": 1.0, "1": 0.0}


def test_killed_run_goes_on(sums: str):
    """What was answered before the engine died is kept, and only the rest is asked again."""
    engine, kept = Oracle({"1+1": "2", "2+2": "4", "3+3": "6", "4+4": "8"}), Kept()
    engine.dies_after = 3
    harness = Harness(sums)
    with pytest.raises(EngineError, match="has died"):
        harness.run(engine, kept)
    assert len(kept) == 3
    engine.dies_after = math.inf
    outcome = harness.run(engine, kept)
    assert (outcome.generated, outcome.reused, outcome.metrics[0].value) == (1, 3, 1.0)


def test_limit_takes_the_first_documents(sums: str):
    """Documents from the beginning; a larger number is kept under the same identity, and asks only what is new."""
    engine, kept = Oracle({"1+1": "2", "2+2": "4", "3+3": "6", "4+4": "8"}), Kept()
    few, more = Harness(sums, limit=2, fewshot=1), Harness(sums, limit=3, fewshot=1)
    outcome = few.run(engine, kept)
    assert (outcome.metrics[0].n, len(engine.asked)) == (2, 2)
    outcome = more.run(engine, kept)
    assert (outcome.metrics[0].n, outcome.generated, outcome.reused, len(engine.asked)) == (3, 1, 2, 3)
    assert few.identity == more.identity == Harness(sums, fewshot=1).identity


def test_chat_sends_messages(colours: str, sums: str):
    """With chat on, engines get messages, few-shot examples as turns, and choices without the space before them."""
    engine = Oracle()
    Harness(colours, chat=True, limit=1).run(engine, Kept())
    assert (({"role": "user", "content": "Q: sky\nA:"},), "blue") in engine.asked
    engine = Oracle()
    Harness(sums, chat=True, limit=1, fewshot=1).run(engine, Kept())
    ((messages, *_),) = engine.asked
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]


def test_fewshot_examples_depend_on_the_seed_alone(sums: str):
    """One loaded task asks every model the same, another seed other examples; the process's own chance is left."""
    before = random.getstate()
    harness = Harness(sums, fewshot=1)
    engines = [Oracle(), Oracle(), Oracle()]
    for engine in engines[:2]:
        harness.run(engine, Kept())
    prompts = [[asked[0] for asked in engine.asked] for engine in engines[:2]]
    assert prompts[0] == prompts[1]
    assert random.getstate() == before
    others = []
    for seed in range(1, 4):
        engine = Oracle()
        Harness(sums, fewshot=1, seed=seed).run(engine, Kept())
        others.append([asked[0] for asked in engine.asked])
    assert any(other != prompts[0] for other in others)


def test_repeated_samples_have_seeds_of_their_own(tmp_path: Path):
    """A task that samples each document twice asks twice, with the same seeds in every run."""
    path = sums_file(tmp_path, "  do_sample: true\n  temperature: 0.5\n", "repeats: 2\n")
    runs = []
    for _ in range(2):
        engine = Oracle({"1+1": "2"})
        Harness(path, limit=1).run(engine, Kept())
        runs.append(sorted(asked[1] for asked in engine.asked))
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 2
    assert all(0 <= seed < 2**31 for seed in runs[0])


def test_seeds_fit_every_engine():
    """31 bits, of which all are used, and another seed for other parts."""
    seeds = [seed_of(0, "id", number, 0) for number in range(100)]
    assert len(set(seeds)) == 100
    assert 2**30 < max(seeds) < 2**31
    assert seed_of(0, "id", 1, 10) != seed_of(0, "id", 11, 0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_that_numpy_does_not_take_is_refused(sums: str, seed: int):
    """What was found and what is expected, instead of NumPy's error; the largest seed works."""
    with pytest.raises(TaskError, match=rf"found the seed {seed}, expected 0 to 2\*\*32-1"):
        Harness(sums, seed=seed)
    assert Harness(sums, seed=2**32 - 1, limit=1).run(Oracle(), Kept()).generated == 1


def test_sampling_that_engines_lack_is_refused(tmp_path: Path):
    """`top_p` would silently be another distribution; where nothing is sampled it means nothing."""
    path = sums_file(tmp_path, "  do_sample: true\n  temperature: 0.5\n  top_p: 0.9\n")
    with pytest.raises(TaskError, match=r"`lm_eval:sums` samples with `top_p: 0.9`"):
        Harness(path).run(Oracle(), Kept())
    path = sums_file(tmp_path, "  do_sample: false\n  top_p: 0.9\n")
    assert Harness(path).run(Oracle(), Kept()).no_room == 4


def test_prefilled_answers_need_plain_text(tmp_path: Path):
    """A task that begins the answer itself is refused with a chat template, and works without."""
    path = sums_file(tmp_path, more='gen_prefix: "It is"\n')
    with pytest.raises(TaskError, match="--no-chat"):
        Harness(path, chat=True).run(Oracle(), Kept())
    engine = Oracle()
    Harness(path, limit=1).run(engine, Kept())
    assert engine.asked[0][0].endswith("It is")


def test_rolling_and_trailing_spaces(tmp_path: Path):
    """A whole text is scored after nothing; a context's trailing spaces go to the continuation, messages' do not."""
    path = task_file(
        tmp_path,
        "texts",
        [{"q": "a b"}, {"q": "a b c d"}],
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{q}}"\nmetric_list:\n'
        "  - metric: word_perplexity\n  - metric: bits_per_byte\n",
    )
    engine = Oracle(scores={("", "a b"): -2.0, ("", "a b c d"): -4.0})
    words, bits = Harness(path).run(engine, Kept()).metrics
    assert words.value == pytest.approx(math.e)
    assert not words.higher_is_better
    assert words.per_document == {}
    assert bits.value == pytest.approx(6 / math.log(2) / 10)
    model = HarnessModel(engine, Kept())
    instance = lm_eval.api.instance.Instance
    chat = model.apply_chat_template([{"role": "user", "content": "x "}])
    model.loglikelihood([instance("loglikelihood", {}, args, 0) for args in (("x  ", "y"), (chat, "y"))])
    assert engine.asked[-2:] == [(({"role": "user", "content": "x "},), "y"), ("x", "  y")]


def test_groups_have_a_metric_of_their_own(tmp_path: Path, colours: str, monkeypatch: pytest.MonkeyPatch):
    """A group's value is its tasks' mean, over all their documents."""
    manager = lm_eval.tasks.TaskManager
    # without the harness's own tasks, which take seconds to look through
    here = functools.partial(manager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **_: here(include_path=tmp_path))
    (tmp_path / "ours.yaml").write_text(
        "group: ours\ntask:\n  - colours\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
    )
    for name in ("ours", str(tmp_path / "ours.yaml")):
        metrics = Harness(name).run(blue(), Kept()).metrics
        (group,) = [metric for metric in metrics if metric.task == "ours"]
        assert (group.name, group.value, group.n, group.per_document) == ("acc", 2 / 3, 3, {})
    with pytest.raises(TaskError, match=r"no task `colors`; did you mean `colours`"):
        Harness("colors")
    assert colours


def test_identity_follows_the_file(colours: str):
    """Results are kept under the task's version, its file and the numbers asked for."""
    before = Harness(colours).identity
    assert before["tasks"] == {"colours": "2.0"}
    assert json.loads(json.dumps(before)) == before
    assert Harness(colours, fewshot=2).identity != before
    Path(colours).write_text(Path(colours).read_text() + "# changed\n")
    assert Harness(colours).identity != before


def test_nothing_is_printed_and_nothing_stays_changed(colours: str, capfd: pytest.CaptureFixture[str]):
    """Logs, bars and prints are kept away, and the process is afterwards as before."""
    before = logging.getLogger("lm_eval").level, os.environ.get("DISABLE_MULTIPROC"), datasets.logging.get_verbosity()
    Harness(colours).run(blue(), Kept())
    after = logging.getLogger("lm_eval").level, os.environ.get("DISABLE_MULTIPROC"), datasets.logging.get_verbosity()
    assert before == after
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No file, no data, broken files, tasks that run code or need images, no harness: each a message of its own."""
    for name in (str(tmp_path / "none.yaml"), "~nobody_at_all/none.yaml"):
        with pytest.raises(TaskError, match="there is no task file"):
            Harness(name)
    away = tmp_path / "away.yaml"
    away.write_text(
        "task: away\ndataset_path: nobody/nothing\ntest_split: test\noutput_type: generate_until\n"
        'doc_to_text: "x"\ndoc_to_target: "y"\n'
    )
    with pytest.raises(TaskError, match=r"`lm_eval:.*away.yaml` cannot be loaded: .*bring the cache"):
        Harness(str(away))
    away.write_text("task: [")
    with pytest.raises(TaskError, match="cannot be loaded"):
        Harness(str(away))
    with pytest.raises(TaskError, match="runs code that the model writes"):
        Harness(sums_file(tmp_path, more="unsafe_code: true\n"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(TaskError, match=r"pip install 'surgery\[lm-eval\]'"):
        Harness("arc_easy")


def test_models_are_scored_and_kept(colours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user calls it: two models, a report with metrics and a comparison; the second time nothing is asked."""
    models = [save_tiny(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    prompts = [f"Q: {record['q']}\nA:" for record in CHOICES]
    scores = {(prompt, f" {CHOICES[i]['choices'][CHOICES[i]['gold']]}"): -0.5 for i, prompt in enumerate(prompts)}  # type: ignore[index]
    engines = [Oracle(scores=scores), Oracle(scores=scores)]
    monkeypatch.setattr(evalkit.api, "make_engine", lambda *_: engines[0])
    task = f"lm_eval:{colours}"
    report = evaluate(task, models, tmp_path / "out", chat=False, engine="oracle")
    assert [row.metrics[0].value for row in report.models] == [1, 1]
    assert [(row.generated, row.reused) for row in report.models] == [(6, 0), (6, 0)]
    assert report.comparisons[0].differences["acc"].value == 0
    engines.pop(0)
    again = evaluate(task, models, tmp_path / "out", chat=False, engine="oracle")
    assert engines[0].asked == []
    assert [(row.generated, row.reused) for row in again.models] == [(0, 6), (0, 6)]
    assert [row.metrics for row in again.models] == [row.metrics for row in report.models]


def test_a_model_with_an_adapter_is_merged_while_it_is_asked(
    colours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine gets the weights that both make, under the model's own name; then they are removed."""
    tiny = save_tiny(tmp_path / "tiny")
    model = f"{tiny}+{write_adapter(tmp_path / 'lora', factors(load_file(tiny / 'model.safetensors')))}"
    oracle = Oracle()
    monkeypatch.setattr(evalkit.api, "make_engine", lambda *_: oracle)
    evaluate(f"lm_eval:{colours}", [tiny, model], tmp_path / "out", chat=False, engine="oracle")
    assert [each.name for each in oracle.loaded] == [str(tiny), model]
    assert oracle.weights[0] != oracle.weights[1]
    assert not (tmp_path / "out/models").exists()


def test_models_without_tokenizer_are_refused_first(
    colours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first model is asked anything."""
    models = [save_tiny(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    (models[1] / "tokenizer.json").unlink()
    oracle = Oracle()
    monkeypatch.setattr(evalkit.api, "make_engine", lambda *_: oracle)
    with pytest.raises(EngineError, match="has no tokenizer"):
        evaluate(f"lm_eval:{colours}", models, tmp_path / "out", chat=False, engine="oracle")
    assert oracle.asked == []
