"""`surgery train`: options in, the API's verb, a table out."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from surgery.errors import SurgeryError
from surgery.options import json_option, name_values, print_json
from trainers.interrupts import Interruptible, Terminated
from trainers.launched import rank, several

TERMINATED = 128 + signal.SIGTERM  # as the shell has it
PATIENCE = 3.0  # seconds in which a launcher ends the other processes, once the first has failed
_set = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=name_values,
    help="Replace a value of the configuration: seed=1, optimizer.learning_rate=1e-5.",
)  # fmt: skip
_model = click.option("--model", help="The checkpoint to begin with, in place of the configuration's.")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Says how a run that is ended from outside goes on, and has one of several processes say what all have found."""
    try:
        yield
    except KeyboardInterrupt:
        _say("what was saved is kept: run the same command with `--resume` to go on")
        raise
    except Terminated:
        _say("terminated; what was saved is kept: run the same command with `--resume` to go on")
        raise click.exceptions.Exit(TERMINATED) from None
    except SurgeryError as error:
        if rank() == 0:
            raise
        time.sleep(PATIENCE)
        click.echo(f"error in process {rank()}: {error}", err=True)
        raise click.exceptions.Exit(1) from error


def _say(text: str) -> None:
    if rank() == 0:
        click.echo(text, err=True)


@click.group()
def train() -> None:
    """Make checkpoints: supervised fine-tuning, PPO, GRPO.

    CONFIG is a YAML file or the name of a bundled configuration (`surgery train configs`).
    """


def _trainer(name: str, summary: str) -> None:
    """Add the command of a trainer; they differ in their configurations alone."""

    @train.command(name, help=summary)
    @click.argument("config")
    @_model
    @click.option("--out", help="The directory of the run, in place of the configuration's.")
    @_set
    @click.option("--resume", is_flag=True, help="Go on with an interrupted run, if there is one, to the same weights.")
    @click.option("--overwrite", is_flag=True, help="Begin anew where a run lies already.")
    @json_option
    def command(
        config: str,
        model: str | None,
        out: str | None,
        settings: dict[str, str],
        resume: bool,
        overwrite: bool,
        as_json: bool,
    ) -> None:
        if resume and overwrite:
            raise click.UsageError("`--resume` goes on, `--overwrite` begins anew; give one of them")
        with _interruptible():
            from trainers import api
            from trainers.console import print_report
            from trainers.progress_bar import TrainingBar

            with TrainingBar() as bar:
                progress = Interruptible(bar)
                if not several():  # a launcher ends processes that may wait for each other, and be deaf to a handler
                    progress.watch()
                report = api.train(
                    name, config, settings=settings, model=model, out=out, resume=resume, overwrite=overwrite,
                    progress=progress,
                )  # fmt: skip
        if rank() != 0:
            return
        if as_json:
            print_json(report.json())
        else:
            print_report(report)


_trainer("sft", "Learn answers: supervised fine-tuning of all weights, loss on the answers.")
_trainer("ppo", "Learn from grades: PPO over several turns, with a value function.")
_trainer("grpo", "Learn from grades: GRPO, relative to other answers to the same problem.")


@train.command()
@click.argument("config")
@click.option("--out", help="The directory of the checkpoint, in place of the configuration's.")
@_set
@json_option
def init(config: str, out: str | None, settings: dict[str, str], as_json: bool) -> None:
    """Make a checkpoint with random weights, to begin with from nothing."""
    from trainers import api

    made = api.init(config, settings=settings, out=out)
    if as_json:
        print_json(made)
        return
    click.echo(f"{made['out']}: {made['parameters']:,} random parameters, {made['tokens']:,} tokens")


@train.command()
@click.argument("trainer", type=click.Choice(["sft", "ppo", "grpo"]))
@click.argument("config")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the files go.")
@_set
@json_option
def data(trainer: str, config: str, out: Path, settings: dict[str, str], as_json: bool) -> None:
    """Write the data of a run as files of JSON lines: what is learned, and what is held out."""
    from trainers import api

    written = api.export_data(api.load_config(trainer, config, settings=settings, model="", out=""), out)
    if as_json:
        print_json({"out": str(out), "records": written})
        return
    for name, count in written.items():
        click.echo(f"{out / name}.jsonl: {count:,} records")


@train.command()
@click.argument("name", required=False)
def configs(name: str | None) -> None:
    """List the bundled configurations and those for `accelerate launch`, or print the one called NAME."""
    from surgery import bundled
    from trainers.loading import FOLDER, LAUNCHER

    folder, _, last = (name or "").rpartition("/")
    if name is not None:
        click.echo(bundled.read(last, LAUNCHER if folder else FOLDER), nl=False)
        return
    for known in (*bundled.names(FOLDER), *(f"accelerate/{known}" for known in bundled.names(LAUNCHER))):
        click.echo(known)
