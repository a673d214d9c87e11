"""`surgery eval`: options in, the API's verb, a table out."""

from __future__ import annotations

from pathlib import Path

import click

from evalkit.errors import EngineError
from evalkit.extras import installed
from surgery.options import json_option, name_values, print_json


def _list(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        with installed("eval", "eval"):
            from evalkit.console import print_engines, print_tasks
            from evalkit.engines import ENGINES
            from evalkit.tasks import TASKS

        print_tasks(TASKS)
        print_engines(ENGINES)
        ctx.exit()


def _text(_: click.Context, __: click.Parameter, path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"cannot read `{path}`: {error}") from error


@click.command()
@click.argument("task")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="Where results are kept."
)
@click.option("--split", "splits", multiple=True, help="A split to score; may be repeated. Default: the task's.")
@click.option("--n", type=click.IntRange(1), help="Examples of each split. Default: the task's.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the examples and of sampling."
)
@click.option(
    "--part",
    type=click.Choice(["test", "validation", "rl", "train"]),
    default="test",
    show_default=True,
    help="Which part of the data the examples are drawn from. Parts never overlap.",
)
@click.option("--attempts", type=click.IntRange(1), help="Tries at an example. Default: the task's.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--max-tokens", type=click.IntRange(1), help="Of one answer. Default: the task's.")
@click.option("--prompt", type=click.Path(path_type=Path), metavar="FILE", help="A Jinja template for the question.")
@click.option("--chat/--no-chat", default=True, show_default=True, help="Chat template, or plain text.")
@click.option(
    "--chat-template", type=click.Path(path_type=Path), metavar="FILE", callback=_text,
    help="A Jinja chat template for all models.",
)  # fmt: skip
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", callback=name_values,
    help="Give a parameter of the task a value: cards=5, target=36.",
)  # fmt: skip
@click.option("--loss", is_flag=True, help="Also score the reference answers: negative log-likelihood.")
@click.option("--engine", help="vllm, transformers or openai:URL. Default: vllm where it is installed.")
@click.option(
    "--engine-option", "engine_options", multiple=True, metavar="NAME=VALUE", callback=name_values,
    help="Passed to the engine: tensor_parallel_size=4, device=cuda, batch_size=16.",
)  # fmt: skip
@click.option("--failures", is_flag=True, help="Show failed answers of every kind.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List tasks and engines.")
@json_option
def evaluate(
    task: str,
    models: tuple[str, ...],
    out: Path,
    splits: tuple[str, ...],
    n: int | None,
    seed: int,
    part: str,
    attempts: int | None,
    temperature: float,
    max_tokens: int | None,
    prompt: Path | None,
    chat: bool,
    chat_template: str | None,
    settings: dict[str, str],
    loss: bool,
    engine: str | None,
    engine_options: dict[str, str],
    failures: bool,
    as_json: bool,
) -> None:
    """Score MODELs on TASK, in and out of distribution, and compare them.

    TASK is one of `surgery eval --list`, or lm_eval:NAME. Every sample is kept under --out: what is finished is never
    done twice, and an interrupted run goes on where it was. A MODEL+ADAPTER is merged there, into a checkpoint
    that is removed once it is scored.
    """
    with installed("eval", "eval"):
        from evalkit import api
        from evalkit.console import print_report
        from evalkit.progress_bar import ProgressBar

    progress = ProgressBar()
    try:
        with installed("eval", "eval"), progress:
            report = api.evaluate(
                task, models, out, settings=settings, splits=splits, n=n, seed=seed, part=part,
                attempts=attempts, temperature=temperature, max_tokens=max_tokens, prompt=prompt, chat=chat,
                chat_template=chat_template, loss=loss, engine=engine, engine_options=engine_options,
                progress=progress,
            )  # fmt: skip
    except (KeyboardInterrupt, EngineError):
        if progress.began:
            click.echo("what is finished is kept: run the same command again to go on", err=True)
        raise
    if as_json:
        print_json(report.json())
    else:
        print_report(report, failures)
