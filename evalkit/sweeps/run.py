"""A sweep from its candidates to its result: make, score, choose, keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from evalkit.summary import Scored
from evalkit.sweeps.bound import Bound, Work
from evalkit.sweeps.checkpoints import CHECKPOINTS, Checkpoints, refuse_inputs
from evalkit.sweeps.choice import Entry, choose, make_rows, pareto, scores_of
from evalkit.sweeps.maker import Making
from evalkit.sweeps.making import Production, Room
from evalkit.sweeps.merged import merge_all, with_adapters
from evalkit.sweeps.progress import Progress
from evalkit.sweeps.result import Row
from evalkit.sweeps.scoring import Scoring
from evalkit.sweeps.spec import Keep
from surgery.api import Model
from surgery.crew import check_device
from surgery.wording import numbered

RESULTS = "results"


def run(bound: Bound, out: Path, keep: Keep, making: Making, progress: Progress) -> tuple[list[Row], list[Entry]]:
    """Score the models and every candidate, and leave the checkpoints that are to stay in `out`.

    Returns the rows, and what they were made of. What an earlier run has made or scored is not done again.
    Raises any SurgeryError.
    """
    refuse_inputs(out, bound.models)
    with Scoring(bound.evaluations, out / RESULTS) as scoring, Checkpoints(out) as checkpoints:
        adapted = with_adapters(bound.models)
        scoring.check([model for role, model in bound.models.items() if role not in adapted])
        checkpoints.claim(bound.sweep.name, bound.models)
        running = _Running(bound, keep, checkpoints, scoring, progress)
        running.recall()
        running.check(making)
        places = merge_all(bound.models, out, making)
        scoring.check([places[role] for role in adapted])
        running.score_models(places)
        running.score(running.made())
        running.make(making)
        return running.rows(), running.entries()


class _Running:
    """What is known so far."""

    def __init__(
        self, bound: Bound, keep: Keep, checkpoints: Checkpoints, scoring: Scoring, progress: Progress
    ) -> None:
        self.bound = bound
        self.keep = keep
        self.checkpoints = checkpoints
        self.scoring = scoring
        self.progress = progress
        self.known: dict[str, Entry] = {}
        self.failed: dict[str, str] = {}  # candidates that cannot be made, and why
        self._begun: set[str] = set()  # candidates that are being made, or lie there to be scored
        self._kept: set[str] = set()  # known from an earlier run, which has kept them
        self._gone: set[str] = set()  # candidates of which nothing lies there

    def recall(self) -> None:
        """Take up what earlier runs have scored, and remove what is no candidate's any more."""
        self.checkpoints.drop_all_but(self.bound.works)
        for work in self.bound.works:
            digest = self.checkpoints.digest(work)
            found = None if digest is None else self.scoring.recall(work.name, digest)
            problem = self.checkpoints.problem(work)
            if found is not None:
                self._learn(work, found)
                self._kept |= {work.name} if self.checkpoints.lies_there(work) else set()
            elif problem is not None:
                self.failed[work.name] = problem
        known = len(self.known) + len(self.failed)
        self.progress.begin(len(self.bound.models), len(self.bound.works), known)
        for text in self.bound.notes:
            self.progress.note(text)

    def check(self, making: Making) -> None:
        """Find out whether what is missing can be made, before anything is asked. Raises any SurgeryError."""
        works = self._unknown()
        if self.keep == "all":
            works += self._lost()
        if works:
            check_device(making.device)
            Room(works, self.checkpoints, self.keep, making)
            if making.memory is not None:
                self.bound.check_memory(making.memory)

    def score_models(self, places: Mapping[str, Model]) -> None:
        """The models that the sweep began with, from where they lie."""
        for role, model in places.items():
            with self.progress.scoring(role) as telling:
                scored = self.scoring.score(role, model, telling)
            self.known[role] = Entry(role, "model", scored, scores_of(scored, self.bound.aim))
        self._tidy()

    def made(self) -> list[Work]:
        """What an earlier run has made and not scored."""
        return [work for work in self._unknown() if self.checkpoints.lies_there(work)]

    def score(self, works: Iterable[Work]) -> None:
        """Score checkpoints that lie there, and remove those that are not to stay."""
        for work in works:
            with self.progress.scoring(work.name) as telling:
                scored = self.scoring.score(work.name, self.checkpoints.path(work), telling)
            self._learn(work, scored)
            self.checkpoints.note_scored(work, scored.model.digest)
            self._begun.discard(work.name)
            self._tidy()

    def make(self, making: Making) -> None:
        """Make what has not been scored, score it, and then what is to stay and is not there.

        In a sweep that has grown since, the last bits of the latter may differ from what was scored, and so its scores.
        """
        tried: set[str] = set()
        while works := self._unknown() or [work for work in self._lost() if work.name not in tried]:
            self._begun = {work.name for work in works}
            self._gone -= self._begun
            tried |= self._begun
            room = Room(works, self.checkpoints, self.keep, making)
            self._begin(works, room)
            batches = room.divide(works)
            production = Production(
                self.bound.works, self.bound.models, self.checkpoints, making, self.progress, self._fail
            )
            with closing(production.produce(batches, room)) as made:
                for batch in made:
                    self.score(batch)

    def rows(self) -> list[Row]:
        """All rows, in the order of the sweep; the winner is linked to."""
        made = {row.name: row for row in make_rows(self.entries(), self.bound.aim)}
        made |= {work.name: self._failed_row(work) for work in self.bound.works if work.name in self.failed}
        rows = [made[name] for name in self._names() if name in made]
        kept = {work.name: work for work in self.bound.works if self.checkpoints.path(work).is_dir()}
        best = next(row.name for row in rows if row.best)
        self.checkpoints.link(kept.get(best))
        shared = {work.name for work in self.bound.works if work.shared is not None}
        places = {name: f"{CHECKPOINTS}/{work.place}" for name, work in kept.items()}
        return [replace(row, kept=places.get(row.name), shared=row.name in shared) for row in rows]

    def entries(self) -> list[Entry]:
        """The models, and every candidate that is known."""
        return [self.known[name] for name in self._names() if name in self.known]

    def _names(self) -> list[str]:
        return [*self.bound.models, *(work.name for work in self.bound.works)]

    def _failed_row(self, work: Work) -> Row:
        candidate = work.candidate
        return Row(
            work.name, candidate.kind, None, candidate.recipe.name, candidate.recipe.summary, candidate.parameters,
            candidate.models, objective=math.nan, allowed=False, error=self.failed[work.name],
        )  # fmt: skip

    def _fail(self, work: Work, problem: str) -> None:
        """A candidate that cannot be made; the others are nothing the worse for it."""
        self.failed[work.name] = problem
        self.known.pop(work.name, None)
        self._begun.discard(work.name)
        self.checkpoints.note_failed(work, problem)
        self.progress.note(f"`{work.name}` could not be made: {problem}")

    def _begin(self, works: Sequence[Work], room: Room) -> None:
        """Begin them all; what an interrupted run has left of the first ones stays, as far as there is room for it."""
        self.checkpoints.begin(works)
        self.checkpoints.drop(work for i, work in enumerate(works) if not room.holds(works[: i + 1]))

    def _learn(self, work: Work, scored: Scored) -> None:
        candidate = work.candidate
        self.known[work.name] = Entry(
            work.name, candidate.kind, scored, scores_of(scored, self.bound.aim), candidate.recipe.name,
            candidate.recipe.summary, candidate.parameters, candidate.models, candidate.recipe.start,
        )  # fmt: skip

    def _unknown(self) -> list[Work]:
        return [work for work in self.bound.works if work.name not in {*self.known, *self.failed}]

    def _lost(self) -> list[Work]:
        """What is to stay and is not there."""
        stay = self._staying()
        return [work for work in self.bound.works if work.name in stay and not self.checkpoints.lies_there(work)]

    def _staying(self) -> set[str]:
        """The candidates that would stay if all were known; one that leaves never comes back."""
        candidates = {work.name for work in self.bound.works if work.name in self.known}
        if self.keep == "all":
            return candidates
        if self.keep == "none":
            return set()
        entries = self.entries()
        selection = {entry.name: entry.scores["selection"] for entry in entries}
        stay = {choose(selection, self.bound.models.keys(), self.bound.aim)}
        if self.keep == "pareto":
            stay |= pareto({entry.name: entry.scores["all"] for entry in entries}, self.bound.aim)
        return stay & candidates

    def _tidy(self) -> None:
        """Remove the checkpoints of candidates that are known and do not stay."""
        leaving = self.known.keys() - self._staying() - self._begun - self._gone
        kept = [work for work in self.bound.works if work.name in leaving & self._kept]
        self._kept -= leaving
        if kept:
            which = numbered(len(kept), "checkpoint")
            self.progress.note(f"{which} of an earlier run {'does' if len(kept) == 1 else 'do'} not stay: removed")
        self.checkpoints.drop(work for work in self.bound.works if work.name in leaving)
        self._gone |= leaving
