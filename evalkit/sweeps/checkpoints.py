"""The checkpoints in a sweep's directory: which are begun, made and scored, and which go."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.journal import Journal
from evalkit.sweeps.bound import Work
from surgery.adapters.naming import split_source
from surgery.api import Model
from surgery.closing import Closing
from surgery.errors import OutputError
from surgery.manifest import is_current
from surgery.unfinished import Places, writing

VARIANTS = "variants.jsonl"  # what was begun and scored; also the lock
CHECKPOINTS = "checkpoints"
BEST = "best"  # a link to the winner
_SWEEP = "/sweep"  # the journal's line about the sweep itself; no directory has such a name
_PLACE = re.compile(r"[\w-]+", re.ASCII)  # see `bound`


class Checkpoints(Closing):
    """Claims a sweep's directory. Raises OutputError for one that holds something else, ResultsError for one in use.

    A line of the journal tells of a candidate's directory: the `key` of the work there and what it has `shared` with
    the others, see `Work`, and the `digest` of the content that was scored, or the `error` for which there is none.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self.root = out / CHECKPOINTS
        with writing(out):
            if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / VARIANTS).exists())):
                raise OutputError(f"`{out}` exists and holds no sweep; choose another `--out`")
        self._journal = Journal(out / VARIANTS, "another sweep is running there")
        try:
            with writing(out):
                self.root.mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise

    def claim(self, name: str, models: Mapping[str, Model]) -> None:
        """Note whose directory it is. Raises OutputError where it is another sweep's, whose checkpoints would go."""
        found = self._journal.get(_SWEEP) or {}
        paths = {
            role: os.path.realpath(model) if Path(model).exists() else str(model) for role, model in models.items()
        }
        known = {role: path for role, path in found.get("models", {}).items() if paths.get(role, path) != path}
        if found.get("name", name) != name or known:
            told = "".join(f", its `{role}` is `{path}`" for role, path in known.items())
            raise OutputError(
                f"`{self._out}` holds the sweep `{found['name']}`{told}; choose another `--out`, or delete that one"
            )
        content = {"name": name, "models": {**found.get("models", {}), **paths}}
        if found != content:
            self._journal.put(_SWEEP, content)

    def path(self, work: Work) -> Path:
        """Where its checkpoint lies, or will."""
        return self.root / work.place

    def lies_there(self, work: Work) -> bool:
        """Whether its checkpoint was made, from inputs that have not changed since, and is there.

        One that was scored is right even where it shared other decompositions, in a sweep that has grown since.
        """
        row, (out, *beside) = self._row(work), Places(self.path(work)).all
        right = "digest" in row or self._is_begun(work)
        return right and not any(map(os.path.lexists, beside)) and is_current(out, work.plan)

    def digest(self, work: Work) -> str | None:
        """Of the content that was scored, once it was."""
        return self._row(work).get("digest")

    def begin(self, works: Sequence[Work]) -> None:
        """They are being made from here on, and are to be scored; what does not belong to that work is removed."""
        for work in works:
            if not self._is_begun(work) or (self.path(work).exists() and not is_current(self.path(work), work.plan)):
                self._remove(work.place)
            self._journal.put(work.place, {"key": work.key, "shared": work.shared})

    def note_scored(self, work: Work, digest: str) -> None:
        """All is known of its content."""
        self._journal.put(work.place, {**self._row(work), "digest": digest})

    def problem(self, work: Work) -> str | None:
        """Why it could not be made; nothing of that has changed since."""
        found = self._row(work).get("error") if self._is_begun(work) else None
        return None if found is None else str(found)

    def note_failed(self, work: Work, problem: str) -> None:
        """It cannot be made, and would not be another time; what there is of it is removed."""
        self._remove(work.place)
        self._journal.put(work.place, {"key": work.key, "shared": work.shared, "error": problem})

    def drop(self, works: Iterable[Work]) -> None:
        """Remove their checkpoints."""
        for work in works:
            self._remove(work.place)

    def drop_all_but(self, works: Iterable[Work]) -> None:
        """Remove what earlier runs have left of other candidates."""
        known = {work.place for work in works}
        for place in [*self._journal.rows]:
            if place not in known and _PLACE.fullmatch(place):
                self._remove(place)

    def taken(self, works: Iterable[Work]) -> int:
        """Bytes on the disk of what lies there of these already."""
        paths = [path for work in works for path in (self.path(work), Places(self.path(work)).partial)]
        return sum(file.stat().st_blocks * 512 for path in paths for file in path.glob("*.safetensors"))

    def link(self, work: Work | None) -> None:
        """Let `best` be a link to this checkpoint."""
        link = self._out / BEST
        with writing(link):
            link.unlink(missing_ok=True)
            if work is not None:
                link.symlink_to(self.path(work).relative_to(self._out))

    def close(self) -> None:
        """Let others have the directory."""
        self._journal.close()

    def _row(self, work: Work) -> Mapping[str, Any]:
        row = self._journal.get(work.place) or {}
        return row if row.get("key") == work.key else {}

    def _is_begun(self, work: Work) -> bool:
        """Whether what lies there, finished or not, has the bytes that it would be given now."""
        row = self._row(work)
        return "shared" in row and row["shared"] == work.shared

    def _remove(self, place: str) -> None:
        """Remove a checkpoint, finished or not. The name goes at once: no half of one is taken for a whole."""
        places = Places(self.root / place)
        with writing(self.root):
            if places.out.is_dir():
                shutil.rmtree(places.replaced, ignore_errors=True)
                places.out.rename(places.replaced)
            for path in (places.replaced, places.partial):
                shutil.rmtree(path, ignore_errors=True)
            places.journal.unlink(missing_ok=True)


def refuse_inputs(out: Path, models: Mapping[str, Model]) -> None:
    """Raise OutputError for models in the directory, which might go as variants do, and for the directory in one."""
    place = Path(os.path.realpath(out))
    named = [(role, model, name) for role, model in models.items() for name in split_source(str(model))]
    for role, model, name in named:
        path = Path(os.path.realpath(name))
        if path.exists() and (place == path or place in path.parents or path in place.parents):
            raise OutputError(
                f"the model `{role}` (`{model}`) is, contains or lies inside `{out}`; choose another `--out`, or copy "
                "the model elsewhere first"
            )
