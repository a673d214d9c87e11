"""What samples come to: scores with intervals, paired comparisons, failures by kind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from typing import Any, ClassVar, TypeVar

from evalkit.engines.base import Model
from evalkit.samples import Loss, Sample
from evalkit.stats import (
    CONFIDENCE,
    Difference,
    Estimate,
    Z,
    holm,
    mean,
    paired_mean,
    paired_proportion,
    paired_ratio,
    proportion,
    ratio,
)
from evalkit.task import UNPARSABLE

EXAMPLES = 3  # failures of each kind that are quoted
QUOTED = 400  # characters of a prompt or an answer: a few lines on a screen
SAME = 1e-6  # a metric this close to the mean of its documents' scores is that mean

Known = TypeVar("Known", Sample, Loss)  # examples that a model has answered, or whose reference it has scored


class _Plain:
    """A dataclass that can be written down."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, _Plain | Estimate | Metric):
        return value.json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class Failure(_Plain):
    """A wrong answer: which example and attempt (from 1), what was asked first, what came, why it is wrong."""

    index: int
    attempt: int
    prompt: str
    answer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Score(_Plain):
    """What one model did on one split, of `n` episodes.

    Shares and means are of episodes, but `format_errors` is the share of answers that are `unparsable`, `tokens` the
    mean of an answer, and `cut` the share of answers that reached `max_tokens`. `failures` counts wrong answers by
    kind, most frequent first; `examples` quotes a few of each. The losses (nats, of reference answers) are None
    where none were scored; the one a token is a ratio of totals, so that long answers weigh more.
    """

    n: int
    accuracy: Estimate
    first_attempt: Estimate
    format_errors: Estimate
    reward: Estimate
    attempts: Estimate
    tokens: Estimate
    cut: Estimate
    failures: Mapping[str, int]
    examples: Mapping[str, tuple[Failure, ...]]
    loss_per_token: Estimate | None
    loss_per_sequence: Estimate | None


@dataclass(frozen=True, slots=True)
class Comparison(_Plain):
    """Two models on the examples of a split that both have: by measure, the second's value less the first's.

    Measures are `accuracy` and `reward`, where both have answered examples, `loss_per_token` and `loss_per_sequence`,
    where both have losses. For lm-evaluation-harness `split` is the name of its task, a measure that of its metric.
    """

    split: str
    first: str
    second: str
    differences: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that lm-evaluation-harness gives: of a task, with its standard error over `n` documents.

    `stderr` is None where there is none; `per_document` holds each document's score, where the metric has them.
    """

    task: str
    name: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool = True
    per_document: Mapping[str, float] = field(default_factory=dict)

    @property
    def estimate(self) -> Estimate:
        """With an interval: of the documents' scores where the value is their mean, or by the normal distribution."""
        scores = [*self.per_document.values()]
        if scores and math.isclose(math.fsum(scores) / len(scores), self.value, rel_tol=SAME, abs_tol=SAME):
            own = range(len(scores))
            return proportion([score == 1 for score in scores], own) if _binary(scores) else mean(scores, own)
        half = Z * self.stderr if self.stderr is not None and math.isfinite(self.stderr) else math.inf
        return Estimate(self.value, self.value - half, self.value + half, self.n)

    def json(self) -> dict[str, Any]:
        """As plain data, the documents left out."""
        known = self.stderr is not None and math.isfinite(self.stderr)
        return {
            "task": self.task,
            "name": self.name,
            "higher_is_better": self.higher_is_better,
            **self.estimate.json(),
            "stderr": self.stderr if known else None,
            "n": self.n,
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """What is known of a model; of its samples, losses or requests `generated` are new, `reused` were there."""

    model: Model
    samples: Sequence[Sample] = ()
    losses: Sequence[Loss] = ()
    generated: int = 0
    reused: int = 0
    metrics: Sequence[Metric] = ()


@dataclass(frozen=True, slots=True)
class Row(_Plain):
    """A model of a report: its scores by split, and its figures of lm-evaluation-harness."""

    model: str
    digest: str
    generated: int
    reused: int
    scores: Mapping[str, Score]
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True)
class Report(_Plain):
    """An evaluation: every model's scores, every later model compared with the first, and all pairs.

    The p-values of `comparisons`, and apart from them those of `pairs`, are adjusted as one family for each measure,
    over all models and splits.
    """

    task: str
    settings: Mapping[str, Any]
    models: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    pairs: tuple[Comparison, ...]

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {"confidence": CONFIDENCE} | super(Report, self).json()


def score(samples: Sequence[Sample], losses: Sequence[Loss] = ()) -> Score:
    """What the samples and losses of one model and one split come to; of no samples, shares and means are nan."""
    samples = sorted(samples, key=lambda sample: sample.index)
    keys = [sample.key for sample in samples]
    grades = [grade for sample in samples for grade in sample.grades]
    answer_keys = [sample.key for sample in samples for _ in sample.grades]
    turns = [float(len(sample.grades)) for sample in samples]
    failures = Counter(grade.kind for grade in grades if not grade.correct)
    nll, tokens, loss_keys = _columns(losses)
    return Score(
        n=len(samples),
        accuracy=proportion([sample.correct for sample in samples], keys),
        first_attempt=proportion([bool(sample.grades) and sample.grades[0].correct for sample in samples], keys),
        format_errors=proportion([grade.kind == UNPARSABLE for grade in grades], answer_keys),
        reward=mean([sample.reward for sample in samples], keys),
        attempts=mean(turns, keys),
        tokens=ratio([float(sample.tokens) for sample in samples], turns, keys),
        cut=ratio([float(sample.cut) for sample in samples], turns, keys),
        failures=dict(failures.most_common()),
        examples={kind: _examples(samples, kind) for kind, _ in failures.most_common()},
        loss_per_token=ratio(nll, tokens, loss_keys) if losses else None,
        loss_per_sequence=mean(nll, loss_keys) if losses else None,
    )


def compare(first: Scored, second: Scored, split: str) -> Comparison:
    """The second model against the first, on the examples of a split that both have."""
    differences = {}
    samples = _paired(first.samples, second.samples, split)
    if samples:
        a, b = zip(*samples, strict=True)
        keys = [sample.key for sample in a]
        differences["accuracy"] = paired_proportion([x.correct for x in a], [y.correct for y in b], keys)
        differences["reward"] = paired_mean([x.reward for x in a], [y.reward for y in b], keys)
    losses = _paired(first.losses, second.losses, split)
    if losses:
        nll, tokens, keys = _columns([x for x, _ in losses])
        nll_too, tokens_too, _ = _columns([y for _, y in losses])
        differences["loss_per_token"] = paired_ratio(nll, tokens, nll_too, tokens_too, keys)
        differences["loss_per_sequence"] = paired_mean(nll, nll_too, keys)
    return Comparison(split, first.model.name, second.model.name, differences)


def compare_metrics(first: Scored, second: Scored) -> list[Comparison]:
    """The second model against the first, for each metric of which both have scores of the same documents."""
    known = {(metric.task, metric.name): metric.per_document for metric in first.metrics}
    found: dict[str, dict[str, Difference]] = {}
    for metric in second.metrics:
        other = known.get((metric.task, metric.name), {})
        documents = sorted(metric.per_document.keys() & other.keys())
        if documents:
            a, b = [[scores[document] for document in documents] for scores in (other, metric.per_document)]
            if _binary([*a, *b]):
                difference = paired_proportion([x == 1 for x in a], [y == 1 for y in b], documents)
            else:
                difference = paired_mean(a, b, documents)
            found.setdefault(metric.task, {})[metric.name] = difference
    return [Comparison(task, first.model.name, second.model.name, differences) for task, differences in found.items()]


def summarise(task: str, settings: Mapping[str, Any], models: Sequence[Scored]) -> Report:
    """The report of an evaluation of one model or more; models and splits keep the order in which they come."""
    splits = [*dict.fromkeys(found for model in models for found in _splits(model))]
    pairs = []
    for a, b in combinations(models, 2):
        pairs += [compare(a, b, split) for split in splits] + compare_metrics(a, b)
    return Report(
        task=task,
        settings=settings,
        models=tuple(_row(model, splits) for model in models),
        comparisons=adjusted([pair for pair in pairs if pair.first == models[0].model.name]),
        pairs=adjusted(pairs),
    )


def _splits(scored: Scored) -> list[str]:
    return [*(sample.split for sample in scored.samples), *(loss.split for loss in scored.losses)]


def _row(scored: Scored, splits: Iterable[str]) -> Row:
    scores = {}
    for split in splits:
        samples = [sample for sample in scored.samples if sample.split == split]
        losses = [loss for loss in scored.losses if loss.split == split]
        if samples or losses:
            scores[split] = score(samples, losses)
    model = scored.model
    return Row(model.name, model.digest, scored.generated, scored.reused, scores, tuple(scored.metrics))


def _paired(first: Iterable[Known], second: Iterable[Known], split: str) -> list[tuple[Known, Known]]:
    """Those of the same example: of the same index, and the same problem under it."""
    known = {(one.index, one.key): one for one in first if one.split == split}
    matched = ((known.get((one.index, one.key)), one) for one in second if one.split == split)
    return [(a, b) for a, b in matched if a is not None]


def _columns(losses: Iterable[Loss]) -> tuple[list[float], list[float], list[str]]:
    losses = [*losses]
    return [loss.nll for loss in losses], [float(loss.tokens) for loss in losses], [loss.key for loss in losses]


def adjusted(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """With Holm's correction: the comparisons of one measure are one family."""
    families: dict[str, list[float]] = {}
    for comparison in comparisons:
        for measure, difference in comparison.differences.items():
            families.setdefault(measure, []).append(difference.p)
    corrected = {measure: iter(holm(p_values)) for measure, p_values in families.items()}
    return tuple(
        replace(comparison, differences={
            measure: replace(difference, adjusted=next(corrected[measure]))
            for measure, difference in comparison.differences.items()
        })
        for comparison in comparisons
    )  # fmt: skip


def _examples(samples: Iterable[Sample], kind: str) -> tuple[Failure, ...]:
    """The first failures of a kind, each of another episode."""
    found: list[Failure] = []
    for sample in samples:
        for attempt, (answer, grade) in enumerate(zip(sample.completions, sample.grades, strict=True), 1):
            if grade.kind == kind and len(found) < EXAMPLES:
                found.append(Failure(sample.index, attempt, _cut(sample.prompt), _cut(answer), grade.reason))
                break
    return tuple(found)


def _cut(text: str) -> str:
    """Both ends of a long text: what matters may stand at either."""
    half = QUOTED // 2
    return text if len(text) <= QUOTED else f"{text[:half]} … {text[-half:]}"


def _binary(scores: Iterable[float]) -> bool:
    return all(score in (0, 1) for score in scores)
