"""A pipeline whose commands are a small script: what happens to them is known, and takes no time.

Run as a program, OUT KIND: runs one of `WAITING` to the end, as `surgery reproduce` does, with the script in place of
`surgery`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.interrupts import Terminated
from trainers.reproduce import run as running
from trainers.reproduce import seed
from trainers.reproduce.loading import load
from trainers.reproduce.pipeline import Pipeline
from trainers.reproduce.standing import Standing
from trainers.reproduce.watch import Silence

# `--set BEHAVIOUR`: what it does; `runs` in the directory counts what ran.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
out = Path(words[words.index("--out") + 1])
behaviour = words[words.index("--set") + 1] if "--set" in words else ""
began = Path(f".{out.name}.began")
first = not began.exists()
began.touch()
with open("runs", "a") as file:
    file.write(f"{out.name}\\n")
print("a result")
print(f"at work on {out.name}", file=sys.stderr, flush=True)
if behaviour == "fails" and not Path("mended").exists():
    print("error: nothing to learn from; give data\\nand more of it", file=sys.stderr)
    sys.exit(1)
if behaviour == "dies" and first:
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "waits" and first:
    try:
        for _ in range(600):
            time.sleep(0.05)
            print("still at work", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        Path("interrupts").open("a").write("x")
        sys.exit(130)
if behaviour.startswith("meets "):  # both are at work at once, or it fails
    for _ in range(200):
        if Path(f".{behaviour.split()[1]}.began").exists():
            break
        time.sleep(0.05)
    else:
        sys.exit(1)
if behaviour != "forgets":
    out.mkdir(exist_ok=True)
    (out / "made").write_text(" ".join(words))
"""


def scripted(*stages: tuple[str, str, Sequence[str]], word: str = "x", jobs: int = 1) -> Pipeline:
    """Stages with their names, behaviours, and the stages whose results they read."""
    listed: list[dict[str, Any]] = [
        {
            "name": name,
            "title": f"makes {name}",
            "run": ["diff", *reads, word, word, "--out", name, *(["--set", how] if how else [])],
            "makes": name,
        }
        for name, how, reads in stages
    ]
    experiments = [{"title": "none", "models": {}}]
    made = {"name": "scripted", "summary": "A script.", "jobs": jobs, "stages": listed, "experiments": experiments}
    return load(made)


WAITING = {
    "one at a time": scripted(("one", "", ()), ("two", "waits", ("one",)), ("three", "", ("two",))),
    "side by side": scripted(("one", "waits", ()), ("two", "waits", ()), ("three", "", ("one", "two")), jobs=2),
}


def words(launch: Sequence[str], given: Sequence[str]) -> list[str]:
    """In place of `trainers.reproduce.commands.python_words`."""
    assert not launch
    return [sys.executable, "-c", SCRIPT, *given]


class Said(Silence):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ends: list[tuple[str, str, str]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Kept."""
        self.notes.append(text)

    def said(self, name: str, line: str) -> None:  # noqa: ARG002
        """Kept."""
        self.lines.append(line)

    def ended(self, name: str, state: str, seconds: float, message: str) -> None:  # noqa: ARG002
        """Kept."""
        self.ends.append((name, state, message))


def run(pipeline: Pipeline, out: Path, **options: Any) -> list[Standing]:
    """With the script; without a report."""
    given: dict[str, Any] = {"seeds": [0], "only": (), "fresh": False, "watch": Silence(), **options}
    return running.run(pipeline, out, **given)


def main() -> None:
    """Exit code 130 after Ctrl-C, 143 after SIGTERM, 0 when everything is finished, else 1."""
    seed.python_words = words
    made = WAITING[sys.argv[2]]
    try:
        found = run(made, Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
    except Terminated:
        sys.exit(143)
    sys.exit(any(standing.state != "finished" for standing in found))


if __name__ == "__main__":
    main()
