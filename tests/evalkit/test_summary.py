from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest

from evalkit.engines.base import Model
from evalkit.samples import Loss, Sample
from evalkit.stats import holm, mean, paired_mean, paired_proportion, paired_ratio, proportion, ratio
from evalkit.summary import EXAMPLES, QUOTED, Metric, Scored, compare, compare_metrics, score, summarise
from evalkit.task import CORRECT, UNPARSABLE, Grade

REWARD = {CORRECT: 5.0, UNPARSABLE: -3.0, "wrong value": -1.0}


def sample(index: int, *kinds: str, split: str = "id", key: str | None = None, **others: object) -> Sample:
    """An episode whose answers were of these kinds; four tokens an answer."""
    fields = {
        "task": "sums",
        "split": split,
        "index": index,
        "key": key or f"k{index}",
        "model": "m",
        "prompt": f"What is {index} + 1?",
        "completions": tuple(f"answer {i} of {index}" for i in range(len(kinds))),
        "grades": tuple(Grade(kind, REWARD[kind], f"{kind}.") for kind in kinds),
        "reward": REWARD[kinds[-1]] if kinds else 0.0,
        "correct": bool(kinds) and kinds[-1] == CORRECT,
        "tokens": 4 * len(kinds),
        "cut": 0,
    }
    return Sample(**{**fields, **others})  # type: ignore[arg-type]


def loss(index: int, nll: float, tokens: int, split: str = "id", key: str | None = None) -> Loss:
    return Loss("sums", split, index, key or f"k{index}", "m", "1", nll, tokens)


def scored(name: str, samples: Sequence[Sample] = (), losses: Sequence[Loss] = (), **others: object) -> Scored:
    generated = others.pop("generated", 0)
    assert isinstance(generated, int)
    reused = len(samples) + len(losses) - generated
    model = Model(name, f"digest of {name}", None)
    return Scored(model, samples, losses, generated, reused, **others)  # type: ignore[arg-type]


def metric(name: str, value: float, scores: dict[str, float], stderr: float | None = 0.1, task: str = "arc") -> Metric:
    return Metric(task, name, value, stderr, 3, per_document=scores)


BAD, WRONG = UNPARSABLE, "wrong value"


def test_score_by_hand():
    """Four episodes of seven answers: figures counted on paper, intervals as in `stats` with keys as clusters."""
    samples = [
        sample(0, CORRECT),
        sample(1, BAD, CORRECT, cut=1),
        sample(2, WRONG, BAD, WRONG, key="k1"),
        sample(3, CORRECT, tokens=8),
    ]
    found = score(samples)
    keys = ["k0", "k1", "k1", "k3"]
    assert found.n == 4
    assert found.accuracy == proportion([True, True, False, True], keys)
    assert found.first_attempt == proportion([True, False, False, True], keys)
    answers = ["k0", "k1", "k1", "k1", "k1", "k1", "k3"]
    assert found.format_errors == proportion([False, True, False, False, True, False, False], answers)
    assert found.reward == mean([5, 5, -1, 5], keys)
    assert found.attempts == mean([1, 2, 3, 1], keys)
    assert found.tokens == ratio([4, 8, 12, 8], [1, 2, 3, 1], keys)
    assert found.tokens.value == pytest.approx(32 / 7)
    assert found.cut.value == pytest.approx(1 / 7)
    assert found.failures == {BAD: 2, WRONG: 2}
    assert found.loss_per_token is found.loss_per_sequence is None


def test_losses_by_hand():
    """A token's loss is total over total, a sequence's is the mean; clusters are the keys."""
    losses = [loss(0, 2.0, 4), loss(1, 9.0, 6), loss(2, 1.0, 2, key="k1")]
    found = score([], losses)
    assert found.loss_per_token == ratio([2, 9, 1], [4, 6, 2], ["k0", "k1", "k1"])
    assert found.loss_per_token is not None
    assert found.loss_per_token.value == 1.0
    assert found.loss_per_sequence == mean([2, 9, 1], ["k0", "k1", "k1"])
    assert found.n == 0
    assert math.isnan(found.accuracy.value)


def test_examples_of_failures():
    """Up to three of a kind, by index, one an episode, long texts shortened at both ends kept; right answers never."""
    long = "start " + "x" * 2000 + " end"
    samples = [sample(i, WRONG, WRONG) for i in range(9, 3, -1)] + [
        sample(0, CORRECT),
        sample(1, BAD, CORRECT, prompt=long),
    ]
    found = score(samples)
    assert list(found.failures) == [WRONG, BAD]
    assert [example.index for example in found.examples[WRONG]] == [4, 5, 6]
    assert len(found.examples[WRONG]) == EXAMPLES
    (bad,) = found.examples[BAD]
    assert (bad.attempt, bad.answer, bad.reason) == (1, "answer 0 of 1", f"{BAD}.")
    assert bad.prompt.startswith("start xx")
    assert bad.prompt.endswith("xx end")
    assert len(bad.prompt) <= QUOTED + 3


def test_an_episode_without_answers_is_not_solved():
    """Where nothing was generated there is no first attempt that could be right, and no share of answers."""
    found = score([sample(0)])
    assert (found.accuracy.value, found.first_attempt.value, found.attempts.value) == (0, 0, 0)
    assert found.format_errors.n == 0
    assert math.isnan(found.tokens.value)
    json.dumps(found.json(), allow_nan=False)


def test_comparison_joins_examples():
    """Only examples of the same split, index and key are compared, whatever their order; the difference is b - a."""
    a = scored(
        "a",
        [sample(0, BAD), sample(1, CORRECT), sample(2, BAD), sample(0, CORRECT, split="ood")],
        [loss(0, 2.0, 2), loss(1, 3.0, 3)],
    )
    b = scored(
        "b",
        [sample(2, CORRECT, key="other"), sample(1, CORRECT), sample(0, CORRECT), sample(7, BAD)],
        [loss(1, 1.0, 4), loss(0, 2.0, 2)],
    )
    found = compare(a, b, "id")
    assert (found.first, found.second, found.split) == ("a", "b", "id")
    assert found.differences == {
        "accuracy": paired_proportion([False, True], [True, True], "ab"),
        "reward": paired_mean([-3, 5], [5, 5], "ab"),
        "loss_per_token": paired_ratio([2, 3], [2, 3], [2, 1], [2, 4], "ab"),
        "loss_per_sequence": paired_mean([2, 3], [2, 1], "ab"),
    }
    assert found.differences["accuracy"].value == 0.5
    assert compare(a, b, "ood").differences == {}


def test_comparison_knows_clusters():
    """Two orders of one hand are one observation to the test."""
    a = scored("a", [sample(i, BAD, key=f"k{i // 2}") for i in range(12)])
    b = scored("b", [sample(i, CORRECT, key=f"k{i // 2}") for i in range(12)])
    assert compare(a, b, "id").differences["accuracy"].p == 2 / 2**6


def test_metrics_are_compared_by_document():
    """Scores of 0 and 1 by the exact test, others by t; documents that only one has are left out."""
    a = scored(
        "a",
        metrics=[
            metric("acc", 1 / 3, {"1": 0.0, "2": 1.0, "3": 0.0}),
            metric("f1", 0.5, {"1": 0.5, "2": 0.5}),
            metric("ppl", 9.0, {}),
        ],
    )
    b = scored(
        "b",
        metrics=[
            metric("acc", 1.0, {"1": 1.0, "2": 1.0, "4": 1.0}),
            metric("f1", 0.6, {"1": 0.75, "2": 0.5}),
            metric("ppl", 8.0, {}),
            metric("new", 1.0, {"1": 1.0}),
        ],
    )
    (found,) = compare_metrics(a, b)
    assert (found.split, found.first, found.second) == ("arc", "a", "b")
    assert found.differences == {
        "acc": paired_proportion([False, True], [True, True], "12"),
        "f1": paired_mean([0.5, 0.5], [0.75, 0.5], "12"),
    }


def test_metric_interval():
    """From the documents where the value is their mean, else from the standard error, else there is none."""
    assert metric("acc", 0.5, {"1": 1.0, "2": 0.0}).estimate == proportion([True, False], range(2))
    assert metric("f1", 0.5, {"1": 0.25, "2": 0.75}).estimate == mean([0.25, 0.75], range(2))
    weighted = metric("acc", 0.9, {"1": 1.0, "2": 0.0}, stderr=0.1).estimate
    assert (weighted.low, weighted.high) == pytest.approx((0.9 - 0.196, 0.9 + 0.196), abs=1e-4)
    for unknown in (None, math.nan):
        found = metric("ppl", 9.0, {}, stderr=unknown)
        assert found.json() == {
            "task": "arc", "name": "ppl", "higher_is_better": True, "stderr": None,
            "value": 9.0, "low": None, "high": None, "n": 3,
        }  # fmt: skip


def report_of_three() -> tuple[Scored, Scored, Scored]:
    a = scored("a", [sample(i, BAD, split=s) for s in ("id", "ood") for i in range(20)], [loss(0, 1.0, 2)], generated=1)
    b = scored("b", [sample(i, CORRECT if i < 15 else BAD, split=s) for s in ("id", "ood") for i in range(20)])
    c = scored("c", [sample(i, CORRECT if i < 6 else BAD) for i in range(20)], metrics=[metric("acc", 1.0, {"1": 1.0})])
    return a, b, c


def test_report():
    """Models and splits in order, what was new and what was there, comparisons with the first, all pairs in JSON."""
    a, b, c = report_of_three()
    found = summarise("sums", {"seed": 0}, [a, b, c])
    assert [(row.model, row.digest, row.generated, row.reused) for row in found.models] == [
        ("a", "digest of a", 1, 40), ("b", "digest of b", 0, 40), ("c", "digest of c", 0, 20)
    ]  # fmt: skip
    assert [[*row.scores] for row in found.models] == [["id", "ood"], ["id", "ood"], ["id"]]
    assert found.models[0].scores["id"] == score(a.samples[:20], a.losses)
    names = [(x.first, x.second, x.split) for x in found.comparisons if x.differences]
    assert names == [("a", "b", "id"), ("a", "b", "ood"), ("a", "c", "id")]
    assert {(x.first, x.second) for x in found.pairs} == {("a", "b"), ("a", "c"), ("b", "c")}
    plain = found.json()
    assert plain["confidence"] == 0.95
    assert plain["models"][2]["metrics"][0]["name"] == "acc"
    assert plain["models"][0]["scores"]["id"]["examples"][BAD][0]["index"] == 0
    json.dumps(plain, allow_nan=False)


def test_comparisons_are_adjusted_as_a_family():
    """Holm's correction runs over all models and splits of a measure, in `comparisons` and in `pairs` apart."""
    found = summarise("sums", {}, report_of_three())
    for family in (found.comparisons, found.pairs):
        differences = [x.differences["accuracy"] for x in family if x.differences]
        assert [d.adjusted for d in differences] == holm([d.p for d in differences])
    assert found.comparisons[0].differences["accuracy"].adjusted == pytest.approx(3 * 2 / 2**15)
    assert found.pairs[0].differences["accuracy"].adjusted == pytest.approx(4 * 2 / 2**15)


def test_one_model_alone():
    """Nothing to compare with."""
    found = summarise("sums", {}, [report_of_three()[0]])
    assert found.comparisons == found.pairs == ()
