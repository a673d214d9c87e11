"""What a person sees of an evaluation: tables on stdout, progress on stderr. Only the command line uses it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from evalkit.stats import CONFIDENCE, Difference, Estimate
from evalkit.summary import Comparison, Failure, Report, Score
from evalkit.task import Task
from surgery.console import PLAIN_SECONDS, _console, _table

LABELS = 0.4  # of the width, what models' names may take before they are folded
GAP = 2  # characters between two columns
ALPHA = 1 - CONFIDENCE
LEAST_P = 0.0001  # smaller p-values are shown as smaller than this
NAME = 30  # characters of a model's name beside the progress bar
ROWS_OF_TEXT = 2  # lines of the terminal that a quoted prompt or answer may take
_LONG = 40  # characters of a setting beyond which it is only said that it was given
_NOT_SHOWN = {"kind", "task", "task_version", "versions"}
_LOWER_IS_BETTER = {"loss_per_token", "loss_per_sequence"}


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: Sequence[str | Text]

    @property
    def width(self) -> int:
        lines = self.heading.splitlines()
        return max(cell_len(str(text)) for text in (*lines, *self.cells))


def print_report(report: Report, failures: bool) -> None:
    """Scores, comparisons with the first model, and, where asked for, examples of failures."""
    console = _console()
    console.print(Text.assemble((report.task, "bold"), f"  {_settings(report.settings)}".rstrip()))
    for labels, columns in _grids(report):
        console.print()
        _print_grid(console, labels, columns)
    if report.comparisons:
        _print_comparisons(console, report)
    console.print()
    console.print(Text(_legend(report), "dim"))
    reused = sum(row.reused for row in report.models)
    console.print(
        Text(f"{sum(row.generated for row in report.models):,} samples are new, {reused:,} were there", "dim")
    )
    if failures:
        _print_failures(console, report)
    elif any(score.failures for row in report.models for score in row.scores.values()):
        console.print(Text("wrong answers by kind, with examples: --failures", "dim"))


def _grids(report: Report) -> Iterator[tuple[list[_Column], list[_Column]]]:
    """The tables of scores: labels and values, in columns that may be spread over several tables."""
    names = [row.model for row in report.models]
    splits = [*dict.fromkeys(split for row in report.models for split in row.scores)]
    scored = [(split, row.model, row.scores[split]) for split in splits for row in report.models if split in row.scores]
    answered = [entry for entry in scored if entry[2].n]
    if answered:
        columns = []
        for split in dict.fromkeys(split for split, _, _ in answered):
            own = {model: score for found, model, score in answered if found == split}
            sizes = {score.n for score in own.values()}
            size = f"  n = {sizes.pop():,}" if len(sizes) == 1 else ""
            columns.append(
                _Column(split + size, [_percent(own[name].accuracy) if name in own else "-" for name in names])
            )
        yield [_Column("accuracy, %", names)], columns
        yield _labels("answers", [entry[:2] for entry in answered]), _answers([entry[2] for entry in answered])
    with_loss = [entry for entry in scored if entry[2].loss_per_token]
    if with_loss:
        columns = [
            _Column("a token", [_measured(score.loss_per_token, 3) for _, _, score in with_loss]),
            _Column("a sequence", [_measured(score.loss_per_sequence, 2) for _, _, score in with_loss]),
        ]
        yield _labels("loss, nats", [entry[:2] for entry in with_loss]), columns
    metrics = {(m.task, m.name): m.higher_is_better for row in report.models for m in row.metrics}
    if metrics:
        columns = []
        for row in report.models:
            own = {(m.task, m.name): _measured(m.estimate, 3) for m in row.metrics}
            columns.append(_Column(row.model, [own.get(metric, "-") for metric in metrics]))
        better = [f"{name} {'↑' if higher else '↓'}" for (_, name), higher in metrics.items()]
        yield [_Column("task", _once([task for task, _ in metrics])), _Column("metric", better)], columns


def _labels(heading: str, entries: Sequence[tuple[str, str]]) -> list[_Column]:
    return [_Column(heading, _once([split for split, _ in entries])), _Column("model", [name for _, name in entries])]


def _once(names: Sequence[str]) -> list[str]:
    """Names in groups, each named in its first row only."""
    return [name if i == 0 or names[i - 1] != name else "" for i, name in enumerate(names)]


def _answers(scores: Sequence[Score]) -> list[_Column]:
    """How answers came about; what concerns retries is left out where there were none."""
    retried = any(score.attempts.value > 1 for score in scores)
    columns = [
        _Column("first\ntry, %", [_share(score.first_attempt) for score in scores]) if retried else None,
        _Column("format\nerrors, %", [_share(score.format_errors) for score in scores]),
        _Column("mean\nreward", [_number(score.reward.value, 2) for score in scores]),
        _Column("mean\nattempts", [_number(score.attempts.value, 2) for score in scores]) if retried else None,
        _Column("tokens an\nanswer", [_number(score.tokens.value, 0) for score in scores]),
        _Column("cut\noff, %", [_share(score.cut) for score in scores]),
    ]
    return [column for column in columns if column]


def _print_comparisons(console: Console, report: Report) -> None:
    compared = [comparison for comparison in report.comparisons if comparison.differences]
    splits = [*dict.fromkeys(comparison.split for comparison in compared)]
    compared.sort(key=lambda comparison: splits.index(comparison.split))  # stable: models keep their order
    higher = {(m.task, m.name): m.higher_is_better for row in report.models for m in row.metrics}
    measures = [*dict.fromkeys(measure for comparison in compared for measure in comparison.differences)]
    columns: list[_Column] = []
    for measure in measures:
        cells = [_difference(comparison, measure, higher) for comparison in compared]
        columns.append(_Column(_HEADINGS.get(measure, measure), [difference for difference, _ in cells]))
        columns.append(_Column("p", [p for _, p in cells]))
    if columns:
        console.print()
        console.print(Text.assemble("difference from ", (report.models[0].model, "bold"), ", on the same examples"))
        _print_grid(console, _labels("split", [(c.split, c.second) for c in compared]), columns, together=2)


_HEADINGS = {
    "accuracy": "accuracy, points",
    "reward": "reward",
    "loss_per_token": "loss a token",
    "loss_per_sequence": "loss a sequence",
}


def _difference(comparison: Comparison, measure: str, higher: Mapping[tuple[str, str], bool]) -> tuple[Text, Text]:
    """The difference with its interval, and its p-value: marked, and coloured by better and worse, where it counts."""
    difference = comparison.differences.get(measure)
    if difference is None:
        return Text("-"), Text("")
    better = higher.get((comparison.split, measure), measure not in _LOWER_IS_BETTER) == (difference.value > 0)
    style = ("green" if better else "red") if _counts(difference) else ""
    scale, digits = (100, 1) if measure == "accuracy" else (1, 2 if measure in ("reward", "loss_per_sequence") else 3)
    return Text(_signed(difference, scale, digits), style), Text(_p(difference), style)


def _counts(difference: Difference) -> bool:
    return (difference.p if difference.adjusted is None else difference.adjusted) < ALPHA


def _p(difference: Difference) -> str:
    shown = f"{difference.p:.2g}" if difference.p >= LEAST_P else f"<{LEAST_P}"
    return f"{shown} {'*' if _counts(difference) else ' '}"


def _legend(report: Report) -> str:
    shown = f"[ ] {CONFIDENCE:.0%} interval".replace("%", " %")
    if not report.comparisons:
        return shown
    family = max((len([c for c in report.comparisons if m in c.differences]) for m in _measures(report)), default=0)
    over = f" after Holm's correction for {family} comparisons" if family > 1 else ""
    return f"{shown}; * p < {ALPHA:.2g}{over}"


def _measures(report: Report) -> set[str]:
    return {measure for comparison in report.comparisons for measure in comparison.differences}


def _print_grid(console: Console, labels: Sequence[_Column], columns: Sequence[_Column], together: int = 1) -> None:
    """A table, or several with the same labels where one would be too wide; so many columns are never parted."""
    most = int(LABELS * console.width) // len(labels)
    room = console.width - sum(min(label.width, most) + GAP for label in labels)
    blocks: list[list[_Column]] = [[]]
    for i in range(0, len(columns), together):
        group = columns[i : i + together]
        if blocks[-1] and sum(column.width + GAP for column in (*blocks[-1], *group)) - GAP > room:
            blocks.append([])
        blocks[-1] += group
    for number, block in enumerate(blocks):
        if number:
            console.print()
        table = _table(*(column.heading for column in (*labels, *block)))
        for column, made in zip((*labels, *block), table.columns, strict=True):
            made.vertical = "bottom"
            if column in labels:
                made.max_width = most
            else:
                made.justify = "right"
        for cells in zip(*(column.cells for column in (*labels, *block)), strict=True):
            table.add_row(*cells)
        console.print(table)


def _percent(estimate: Estimate) -> str:
    return f"{_share(estimate)} [{100 * estimate.low:4.1f}, {100 * estimate.high:4.1f}]"


def _share(estimate: Estimate) -> str:
    return _number(100 * estimate.value, 1)


def _measured(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return "-"
    interval = f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]" if math.isfinite(estimate.low) else ""
    return _number(estimate.value, digits) + interval


def _signed(difference: Difference, scale: float, digits: int) -> str:
    low, high = scale * difference.low, scale * difference.high
    interval = f" [{low:+.{digits}f}, {high:+.{digits}f}]" if math.isfinite(low) else ""
    return f"{scale * difference.value:+.{digits}f}" + interval


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def _settings(settings: Mapping[str, Any]) -> str:
    """Settings in a line, those within others too; long ones are only said to be given, empty ones left out."""
    shown = []
    for name, value in settings.items():
        if name in _NOT_SHOWN or value is None or value in ("", (), [], {}):
            continue
        if isinstance(value, Mapping):
            shown.append(_settings(value))
        elif isinstance(value, bool):
            shown.append(f"{name} {'on' if value else 'off'}")
        else:
            text = _line(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
            shown.append(f"{name} {text}" if len(text) <= _LONG else f"{name} given")
    return ", ".join(filter(None, shown))


def _print_failures(console: Console, report: Report) -> None:
    """Wrong answers of every split and model by kind, the most frequent first, with examples."""
    for split in dict.fromkeys(split for row in report.models for split in row.scores):
        for row in report.models:
            score = row.scores.get(split)
            if score is None or not score.failures:
                continue
            answers, wrong = score.format_errors.n, sum(score.failures.values())
            console.print()
            console.print(
                Text.assemble((f"{row.model}, {split}", "bold"), f"  {wrong:,} of {answers:,} answers are wrong")
            )
            for kind, count in score.failures.items():
                share = f"{100 * count / answers:.0f} %"
                console.print(Text.assemble("  ", (_line(kind), "bold"), f"  {count:,} answers, {share}"))
                for failure in score.examples.get(kind, ()):
                    _print_failure(console, failure)


def _print_failure(console: Console, failure: Failure) -> None:
    console.print(Text(f"    example {failure.index}, attempt {failure.attempt}: {_line(failure.reason)}"))
    for name, text in (("asked", failure.prompt), ("answer", failure.answer)):
        room = ROWS_OF_TEXT * (console.width - 6) - len(name) - 2
        line = _line(text)
        # What is asked stands at a prompt's end; an answer is known by its beginning.
        cut = line if len(line) <= room else f"{line[: room - 1]}…" if name == "answer" else f"…{line[1 - room :]}"
        quoted = Text.assemble((f"{name}: ", "dim"), cut or "nothing")
        for piece in quoted.wrap(console, console.width - 6):
            console.print(Text("      ") + piece)


def _line(text: str) -> str:
    """Foreign text on one line, without what would steer a terminal."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in joined)


def print_tasks(tasks: Mapping[str, type[Task]]) -> None:
    """Every task: what it is, its splits, parameters with defaults, and kinds of failures."""
    console = _console()
    for number, (name, task) in enumerate(tasks.items()):
        if number:
            console.print()
        summary = (task.__doc__ or "").strip().split("\n")[0]
        console.print(Text.assemble((name, "bold"), f"  {summary}".rstrip()))
        table = _table("", "", "")
        table.show_header = False
        rows = [
            *_listed("splits", _splits(task)),
            *_listed(
                "parameters",
                [(_parameter(name, field), field.description or "") for name, field in task.model_fields.items()],
            ),
            ("failures", ", ".join(task.kinds), ""),
            ("attempts", f"{task.attempts}, of up to {task.max_tokens} tokens", ""),
        ]
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _listed(heading: str, entries: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    for number, (name, text) in enumerate(entries):
        yield ("" if number else heading), name, text


def _splits(task: type[Task]) -> list[tuple[str, str]]:
    """Of the task with its default parameters; they may depend on parameters that have no default."""
    try:
        return [*task().splits.items()]
    except ValidationError:
        return [("by parameters", "")]


def _parameter(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return f"{name} (needed)"
    default = field.get_default(call_default_factory=True)
    return name if default in (None, "", (), []) else f"{name} = {default}"


class Progress:
    """Progress of an evaluation on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._work = self._bar.add_task("", total=None, visible=False, rate="")
        self._name, self._total, self._done, self._tokens = "", 0, 0, 0
        self._began = self._told = monotonic()

    def model(self, name: str, total: int, reused: int) -> None:
        """A model's turn: so many episodes and losses in all, so many of them known from an earlier run."""
        self._name, self._total, self._done, self._tokens = name, total, reused, 0
        self._began = self._told = monotonic()
        self._bar.reset(self._work, total=total, completed=reused, visible=True, description=_end(name), rate="")
        known = f", {reused:,} known from an earlier run" if reused else ""
        self._tell(f"{total - reused:,} of {total:,} to do{known}")

    def turn(self, number: int, live: int) -> None:
        """Turn `number`, from 1, begins with so many live episodes."""
        if number == 1:
            self._began = monotonic()  # the checkpoint is loaded
        self._bar.update(self._work, description=f"{_end(self._name)}  turn {number}, {live:,} live")
        self._tell(f"turn {number}, {live:,} episodes")

    def finished(self, tokens: int) -> None:
        """An episode or a loss is done; so many tokens were generated or scored for it."""
        self._done += 1
        self._tokens += tokens
        rate = f"{self._tokens / max(monotonic() - self._began, 1e-3):,.0f} tokens/s"
        self._bar.update(self._work, completed=self._done, rate=rate)
        if monotonic() >= self._told + PLAIN_SECONDS:
            self._tell(f"{self._done:,} of {self._total:,}, {rate}")

    def note(self, text: str) -> None:
        """Something that a user should know."""
        self._console.print(f"note: {text}")

    def _tell(self, text: str) -> None:
        self._told = monotonic()
        if not self._console.is_terminal:
            self._console.print(f"{self._name}: {text}", soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def _end(name: str) -> str:
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"
