"""What a person sees of an evaluation: tables on stdout. Only the command line uses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from evalkit.figures import (
    ALPHA,
    change,
    counts,
    number,
    number_in,
    one_line,
    p_value,
    settings_line,
    share,
    share_in,
    tail_of,
)
from evalkit.stats import CONFIDENCE
from evalkit.summary import Comparison, Failure, Report, Row, Score
from evalkit.task import Task
from surgery.console import make_console, make_table

NAMES = 0.3  # of the width, what a model's name may take in a table before its beginning is left out
NARROW = 60  # characters of a width at which p-values stand below differences
GAP = 2  # characters between two columns
INDENT = 6  # characters before what is quoted
SLACK = 8  # characters of a line that breaking it between words may cost
_LOWER_IS_BETTER = {"loss_per_token", "loss_per_sequence"}
_HEADINGS = {"accuracy": "accuracy, points", "loss_per_token": "loss a token", "loss_per_sequence": "loss a sequence"}


@dataclass(frozen=True)
class Column:
    """A column of a table, its figures on the right."""

    heading: str
    cells: Sequence[Text]
    right: bool = True

    @property
    def width(self) -> int:
        """Characters of the widest line."""
        texts = (self.heading, *(cell.plain for cell in self.cells))
        return max(cell_len(line) for text in texts for line in text.split("\n"))

    def broken(self) -> Column:
        """The same, intervals below their values."""
        return replace(self, cells=[Text(cell.plain.replace(" [", "\n["), cell.style) for cell in self.cells])


def column(heading: str, cells: Iterable[str]) -> Column:
    """A column of plain texts."""
    return Column(heading, [Text(cell) for cell in cells])


def print_report(report: Report, failures: bool) -> None:
    """Scores, comparisons with the first model, and, where asked for, examples of failures."""
    console = make_console()
    report = _short_names(report, int(NAMES * console.width))
    console.print(Text.assemble((report.task, "bold"), f"  {settings_line(report.settings)}".rstrip()))
    for labels, columns in _grids(report):
        console.print()
        print_grid(console, labels, columns)
    _print_comparisons(console, report)
    console.print()
    for line in _footnotes(report, failures):
        console.print(Text(line, "dim"))
    if failures:
        _print_failures(console, report)


def _short_names(report: Report, room: int) -> Report:
    """The report with models' names cut at their beginnings, where they then still differ."""
    short = {row.model: tail_of(row.model, room) for row in report.models}
    if len(set(short.values())) < len(report.models):
        return report
    return replace(
        report,
        models=tuple(replace(row, model=short[row.model]) for row in report.models),
        comparisons=tuple(replace(c, first=short[c.first], second=short[c.second]) for c in report.comparisons),
    )


def _grids(report: Report) -> Iterator[tuple[list[Column], list[Column]]]:
    """The tables of scores: labels and values, in columns that may be spread over several tables."""
    splits = dict.fromkeys(split for row in report.models for split in row.scores)
    scored = [(split, row.model, row.scores[split]) for split in splits for row in report.models if split in row.scores]
    answered = [entry for entry in scored if entry[2].n]
    if answered:
        names = [row.model for row in report.models]
        yield [column("accuracy, %", names)], [*_accuracies(answered, names)]
        yield _labels("answers", [entry[:2] for entry in answered]), _answers([entry[2] for entry in answered])
    with_loss = [entry for entry in scored if entry[2].loss_per_token]
    if with_loss:
        columns = [
            column("a token", [number_in(score.loss_per_token, 3) for _, _, score in with_loss]),
            column("a sequence", [number_in(score.loss_per_sequence, 2) for _, _, score in with_loss]),
        ]
        yield _labels("loss, nats", [entry[:2] for entry in with_loss]), columns
    metrics = {(metric.task, metric.name): metric for row in report.models for metric in row.metrics}
    if metrics:
        arrows = [f"{metric.name} {'↑' if metric.higher_is_better else '↓'}" for metric in metrics.values()]
        labels = [column("task", _once([task for task, _ in metrics])), column("metric", arrows)]
        yield labels, [column(row.model, _figures(row, [*metrics])) for row in report.models]


def _accuracies(answered: Sequence[tuple[str, str, Score]], names: Sequence[str]) -> Iterator[Column]:
    """A column for each split, a cell for each model."""
    for split in dict.fromkeys(split for split, _, _ in answered):
        own = {model: score for found, model, score in answered if found == split}
        sizes = {score.n for score in own.values()}
        size = f"  n = {sizes.pop():,}" if len(sizes) == 1 else ""
        yield column(split + size, [share_in(own[name].accuracy) if name in own else "-" for name in names])


def _answers(scores: Sequence[Score]) -> list[Column]:
    """How answers came about; what concerns retries is left out where there were none."""
    retried = any(score.attempts.value > 1 for score in scores)
    columns = [
        column("first\ntry, %", [share(score.first_attempt) for score in scores]) if retried else None,
        column("format\nerrors, %", [share(score.format_errors) for score in scores]),
        column("mean\nreward", [number(score.reward.value, 2) for score in scores]),
        column("mean\nattempts", [number(score.attempts.value, 2) for score in scores]) if retried else None,
        column("tokens an\nanswer", [number(score.tokens.value, 0) for score in scores]),
        column("cut\noff, %", [share(score.cut) for score in scores]),
    ]
    return [column for column in columns if column]


def _figures(row: Row, metrics: Sequence[tuple[str, str]]) -> list[str]:
    own = {(metric.task, metric.name): number_in(metric.estimate, 3) for metric in row.metrics}
    return [own.get(metric, "-") for metric in metrics]


def _labels(heading: str, entries: Sequence[tuple[str, str]]) -> list[Column]:
    return [column(heading, _once([split for split, _ in entries])), column("model", [name for _, name in entries])]


def _once(names: Sequence[str]) -> list[str]:
    """Names in groups, each named in its first row only."""
    return [name if i == 0 or names[i - 1] != name else "" for i, name in enumerate(names)]


def _print_comparisons(console: Console, report: Report) -> None:
    higher = {(metric.task, metric.name): metric.higher_is_better for row in report.models for metric in row.metrics}
    tables: dict[tuple[str, ...], list[Comparison]] = {}
    for split in dict.fromkeys(comparison.split for comparison in report.comparisons):
        for comparison in report.comparisons:
            if comparison.split == split and comparison.differences:
                tables.setdefault(tuple(comparison.differences), []).append(comparison)
    if tables:
        console.print()
        console.print(Text.assemble("compared with ", (report.models[0].model, "bold"), ", on the same examples"))
    narrow = console.width < NARROW
    for i, (measures, compared) in enumerate(tables.items()):
        if i:
            console.print()
        columns: list[Column] = []
        for measure in measures:
            cells = [_difference(comparison, measure, higher) for comparison in compared]
            heading = _HEADINGS.get(measure, measure)
            if narrow:
                columns.append(Column(heading, [Text(f"{d}\np {p}", d.style) for d, p in cells]))
            else:
                columns += Column(heading, [d for d, _ in cells]), Column("p  ", [p for _, p in cells])
        print_grid(console, _labels("split", [(c.split, c.second) for c in compared]), columns, 1 if narrow else 2)


def _difference(comparison: Comparison, measure: str, higher: Mapping[tuple[str, str], bool]) -> tuple[Text, Text]:
    """The difference with its interval, and its p-value: marked, and coloured by better and worse, where it counts."""
    difference = comparison.differences[measure]
    better = higher.get((comparison.split, measure), measure not in _LOWER_IS_BETTER) == (difference.value > 0)
    style = ("green" if better else "red") if counts(difference) else ""
    scale, digits = (100, 1) if measure == "accuracy" else (1, 2 if measure in ("reward", "loss_per_sequence") else 3)
    return Text(change(difference, scale, digits), style), Text(p_value(difference), style)


def _footnotes(report: Report, failures: bool) -> Iterator[str]:
    """What the brackets and stars mean, what was done now, and how to see more."""
    family = max((len([c for c in report.comparisons if m in c.differences]) for m in _measures(report)), default=0)
    star = f"; * p < {ALPHA:.2g}" if family else ""
    holm = f" after Holm's correction for {family} comparisons" if family > 1 else ""
    yield f"[ ] {100 * CONFIDENCE:.0f} % interval{star}{holm}"
    new, reused = sum(row.generated for row in report.models), sum(row.reused for row in report.models)
    if new or reused:
        yield f"{new:,} samples are new, {reused:,} are from earlier runs"
    if not failures and any(score.failures for row in report.models for score in row.scores.values()):
        yield "--failures shows wrong answers of every kind"


def _measures(report: Report) -> set[str]:
    return {measure for comparison in report.comparisons for measure in comparison.differences}


def print_grid(console: Console, labels: Sequence[Column], columns: Sequence[Column], together: int = 1) -> None:
    """A table, or several with the same labels where one would be too wide; so many columns stay together."""
    room = console.width - sum(label.width + GAP for label in labels)
    groups = [columns[i : i + together] for i in range(0, len(columns), together)]
    if any(_width(group) > room for group in groups):
        groups = [[column.broken() for column in group] for group in groups]
    blocks: list[list[Column]] = [[]]
    for group in groups:
        if blocks[-1] and _width([*blocks[-1], *group]) > room:
            blocks.append([])
        blocks[-1] += group
    for i, block in enumerate(blocks):
        if i:
            console.print()
        table = make_table(*(column.heading for column in (*labels, *block)))
        for made, asked in zip(table.columns[len(labels) :], block, strict=True):
            made.justify = "right" if asked.right else "left"
        for cells in zip(*(column.cells for column in (*labels, *block)), strict=True):
            table.add_row(*cells)
        console.print(table)


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width + GAP for column in columns) - GAP


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
                title = (one_line(kind), "bold")
                console.print(Text.assemble("  ", title, f"  {count:,} answers, {100 * count / answers:.0f} %"))
                for failure in score.examples.get(kind, ()):
                    _print_failure(console, failure)


def _print_failure(console: Console, failure: Failure) -> None:
    reason = Text(f"example {failure.index}, attempt {failure.attempt}: {one_line(failure.reason)}")
    _print_indented(console, reason, INDENT - 2)
    for name, text, lines in (("asked", failure.prompt, 3), ("answer", failure.answer, 2)):
        quoted = _both_ends(one_line(text) or "nothing", lines * (console.width - INDENT - SLACK))
        _print_indented(console, Text.assemble((f"{name}: ", "dim"), quoted), INDENT)


def _both_ends(text: str, room: int) -> str:
    """Most of a long text's beginning, and some of its end: the question may stand at either."""
    tail = room // 3
    return text if len(text) <= room else f"{text[: room - tail]} … {text[-tail:]}"


def _print_indented(console: Console, text: Text, indent: int) -> None:
    for piece in text.wrap(console, console.width - indent):
        console.print(Text(" " * indent) + piece)


def print_tasks(tasks: Mapping[str, type[Task]]) -> None:
    """Every task: what it is, its splits, parameters with defaults, and kinds of failures."""
    console = make_console()
    for i, (name, task) in enumerate(tasks.items()):
        if i:
            console.print()
        summary = (task.__doc__ or "").strip().split("\n")[0]
        console.print(Text.assemble((name, "bold"), f"  {summary}".rstrip()))
        table = make_table("", "")
        table.show_header = False
        parameters = [(_parameter(name, field), field.description or "") for name, field in task.model_fields.items()]
        table.add_row("splits", _aligned(_splits(task)))
        if parameters:
            table.add_row("parameters", _aligned(parameters))
        table.add_row("failures", ", ".join(task.kinds))
        table.add_row("attempts", f"{task.attempts}, of up to {task.max_tokens} tokens")
        console.print(table)
    console.print()
    console.print(Text.assemble(("lm_eval:NAME", "bold"), "  A task, a group or a task file of lm-evaluation-harness."))


def print_engines(engines: Mapping[str, str]) -> None:
    """Every engine and what it is."""
    console = make_console()
    console.print()
    console.print(Text("engines", "bold"))
    console.print(_aligned([*engines.items()]))


def _aligned(entries: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in entries)
    return "\n".join(f"{name:{width}}  {text}".rstrip() for name, text in entries)


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
