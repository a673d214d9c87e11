"""Outputs that are complete or do not exist: made beside their place, resumed after a kill, renamed at the end."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from surgery.checkpoint import Checkpoint
from surgery.closing import Closing
from surgery.errors import OutputError, SurgeryError
from surgery.journal import Journal

# The key of an identity for what else is made in the same pass, which decides over the last bits: leftovers of the same
# work that differ in nothing else are nobody else's, and are made anew without a question.
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Kind:
    """What an output is: in messages, and by the names of the files in it; `work` is what its plan depends on."""

    noun: str
    work: str
    is_one: Callable[[set[str]], bool]


@dataclass(frozen=True, slots=True)
class Places:
    """An output and what lies beside it while it is made, all in one directory so that a rename is enough."""

    out: Path

    @property
    def partial(self) -> Path:
        """The output until it is complete."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def journal(self) -> Path:
        """What is finished."""
        return self.out.with_name(self.out.name + ".partial.jsonl")

    @property
    def replaced(self) -> Path:
        """An output that is being replaced, between the renaming and its deletion."""
        return self.out.with_name(f".{self.out.name}.replaced-by-surgery")

    @property
    def all(self) -> tuple[Path, ...]:
        """Every path that is written, renamed or deleted."""
        return self.out, self.partial, self.journal, self.replaced


class Unfinished(Closing):
    """An output on its way: `OUT.partial` and its journal, which is also the lock.

    `identity` says whose work it is. Raises OutputError when the leftovers belong to other work (unless `fresh`, which
    drops them), or another process writes the same output.
    """

    def __init__(
        self,
        places: Places,
        kind: Kind,
        identity: Mapping[str, object],
        *,
        overwrite: bool = False,
        fresh: bool = False,
    ) -> None:
        self.places = places
        self._kind = kind
        self._overwrite = overwrite
        with writing(places.partial):
            if os.path.lexists(places.partial) and (places.partial.is_symlink() or not places.journal.exists()):
                raise OutputError(
                    f"`{places.partial}` exists and has no journal (`{places.journal.name}`), so it is no output of "
                    f"ours to go on with; move or delete it, or choose another OUT"
                )
            places.partial.parent.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(places.journal)
            try:
                check_replaceable(places.out, kind, overwrite=overwrite)  # another run may have ended meanwhile
                self._claim(identity, fresh)
            except BaseException:
                if not places.partial.exists():
                    self._journal.remove()
                self.close()
                raise

    @property
    def finished(self) -> Mapping[str, str]:
        """Digests of the parts that an earlier, interrupted run or this one has finished, by name."""
        return self._journal.finished

    def record(self, name: str, digest: str) -> None:
        """Note that a part is complete."""
        with writing(self._journal.path):
            self._journal.record(name, digest)

    def publish(self, *, durable: bool = False) -> None:
        """Give the output its name.

        An existing OUT is moved aside first and deleted afterwards: at no moment is it half old, half new. Raises
        OutputError when something appeared at OUT meanwhile that may not be replaced.
        """
        places = self.places
        with writing(places.partial):
            if durable:
                for path in (*places.partial.rglob("*"), places.partial):
                    _sync(path)
            check_replaceable(places.out, self._kind, overwrite=self._overwrite)
            if places.out.exists():
                shutil.rmtree(places.replaced, ignore_errors=True)
                places.out.rename(places.replaced)
            places.partial.rename(places.out)
            shutil.rmtree(places.replaced, ignore_errors=True)
            self._journal.remove()
            if durable:
                _sync(places.partial.parent)

    def drop(self) -> None:
        """Delete what is finished: there will be no output."""
        with writing(self.places.partial):
            shutil.rmtree(self.places.partial)
            self._journal.remove()

    def close(self) -> None:
        """Release the lock; what is finished stays in `OUT.partial`."""
        self._journal.close()

    def _claim(self, identity: Mapping[str, object], fresh: bool) -> None:
        partial = self.places.partial
        if self._journal.identity != identity or fresh or not partial.exists():
            if partial.exists():
                differing = _differing(self._journal.identity, identity)
                if not fresh and differing != [OTHERS]:
                    owner = _owner(differing, self._kind.work)
                    raise OutputError(
                        f"`{partial}` is left from {owner}; run that one to its end, or add `--fresh` to drop its "
                        f"work and start over"
                    )
                shutil.rmtree(partial)
            self._journal.begin(identity)
        partial.mkdir(exist_ok=True)


def settled(places: Places, identity: Mapping[str, object], is_ours: Callable[[], bool]) -> bool:
    """Whether a run of this very work was stopped when OUT had its name already; then what it left is cleaned up.

    `is_ours` tells whether what is at OUT is the finished output of this work.
    """
    with writing(places.out):
        if places.partial.exists() or not places.journal.exists() or not is_ours():
            return False
        journal = Journal(places.journal)
        try:
            if journal.identity != identity:
                return False
            shutil.rmtree(places.replaced, ignore_errors=True)
            journal.remove()
            return True
        finally:
            journal.close()


def check_output(places: Places, kind: Kind, inputs: Mapping[str, Checkpoint], *, overwrite: bool) -> None:
    """Refuse an OUT that is, contains or lies in an input, or that exists and may not be replaced.

    What is made beside OUT on the way must not touch an input either.
    """
    with writing(places.out):
        if os.path.ismount(places.out) or places.out == places.out.parent:
            raise OutputError(f"`{places.out}` is a mount point, which no rename can replace; choose a directory in it")
        for target in places.all:
            _refuse_inputs(Path(os.path.realpath(target)), places.out, inputs)
        check_replaceable(places.out, kind, overwrite=overwrite)


def missing_room(size: int, directories: Sequence[Path]) -> int:
    """Bytes that a disk lacks for outputs of `size` bytes in these directories on it, with what lies there already.

    Not positive where there is room.
    """
    with writing(directories[0]):
        files = (path for directory in directories for path in directory.rglob("*"))
        present = sum(path.stat().st_blocks * 512 for path in files if path.is_file())
        room = os.statvfs(directories[0])
    return size - present - room.f_bavail * room.f_frsize


def _refuse_inputs(target: Path, out: Path, inputs: Mapping[str, Checkpoint]) -> None:
    for role, checkpoint in inputs.items():
        owned = [checkpoint.root] if checkpoint.is_directory else []
        owned += [shard.path for shard in checkpoint.shards]
        owned += [adapter.root for adapter in checkpoint.adapters]
        for path in map(Path, map(os.path.realpath, owned)):
            if target == path or target in path.parents or path in target.parents:
                raise OutputError(
                    f"OUT `{out}` (`{target}`) is, contains or lies inside the input `{role}` ({checkpoint.source}); "
                    f"choose another directory"
                )


def check_replaceable(out: Path, kind: Kind, *, overwrite: bool) -> None:
    """Refuse to replace what is at `out`, unless that is an empty directory, or of the kind with `overwrite`."""
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise OutputError(f"`{out}` exists and is no directory; choose another OUT")
    names = {path.name for path in out.iterdir()}
    if names and not overwrite:
        raise OutputError(f"`{out}` exists already; choose another OUT, or add `--overwrite` to replace it")
    if names and not kind.is_one(names):
        raise OutputError(f"`{out}` exists and holds no {kind.noun}; `--overwrite` replaces {kind.noun}s only")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into one that says what to do."""
    try:
        yield
    except SurgeryError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room" if full else "mend that"
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}; {remedy}, and run the same command again: it goes on "
            f"from what is finished"
        ) from error
    except ValueError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; choose another name") from error


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _differing(found: Mapping[str, object] | None, expected: Mapping[str, object]) -> list[str] | None:
    """The keys of an identity in which leftovers differ; None if theirs is not known."""
    if found is None:
        return None
    return [key for key in {**expected, **found} if found.get(key) != expected.get(key)]


def _owner(differing: list[str] | None, work: str) -> str:
    """What the leftovers belong to, in words."""
    if differing is None:
        return "something else (its journal cannot be read)"
    if differing == ["inputs"]:
        return "inputs that have changed since"
    if "plan" in differing:
        return f"{work} or other inputs"
    return f"the same work under another {' and '.join(key for key in differing if key != OTHERS)}"
