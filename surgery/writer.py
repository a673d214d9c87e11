"""Writes an output: every shard at full size beforehand, tensors in place and in any order, one rename at the end."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from surgery.closing import Closing
from surgery.errors import CheckpointError, OutputError, SurgeryError
from surgery.header import TensorInfo
from surgery.journal import Journal
from surgery.plan import COPY_BYTES, Plan

MANIFEST_FILE = "surgery.json"
_NOT_IN_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


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


class Writer(Closing):
    """The only part that writes. Everything goes into `OUT.partial`, which becomes OUT by one rename.

    `identity` says whose work it is; `finished` maps the tensors that an earlier, interrupted run of the same work
    left behind to their digests. Raises OutputError when the leftovers belong to other work (unless `fresh`, which
    drops them), another process writes the same output, or the disk is too small.
    """

    def __init__(
        self,
        places: Places,
        plan: Plan,
        identity: Mapping[str, object],
        *,
        overwrite: bool = False,
        fresh: bool = False,
        durable: bool = False,
    ) -> None:
        self.places = places
        self.partial = places.partial
        self._plan = plan
        self._overwrite = overwrite
        self._durable = durable
        self._fds: dict[str, int] = {}
        with writing(self.partial):
            if os.path.lexists(self.partial) and (self.partial.is_symlink() or not self.places.journal.exists()):
                raise OutputError(
                    f"`{self.partial}` exists and has no journal (`{self.places.journal.name}`), so it is no output of "
                    f"ours to go on with; move or delete it, or choose another OUT"
                )
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(self.places.journal)
            try:
                self._claim(identity, fresh)
                self._create_files()
            except BaseException:
                self.close()
                raise

    @property
    def finished(self) -> Mapping[str, str]:
        """Digests of the tensors that are in place."""
        return self._journal.finished

    def write(self, slot: TensorInfo, offset: int, buffer: memoryview) -> None:
        """Put bytes at `offset` of a tensor."""
        position = slot.start + offset
        view = buffer.cast("B")
        with writing(self.partial / slot.file):
            while view:
                written = os.pwrite(self._fds[slot.file], view, position)
                view, position = view[written:], position + written

    def copy(self, slot: TensorInfo, fd: int, position: int) -> None:
        """Copy a whole tensor from another file, inside the kernel where it can; reflinks where the disk can."""
        left, target = slot.nbytes, slot.start
        with writing(self.partial / slot.file):
            while left:
                copied = _copy_some(fd, position, self._fds[slot.file], target, left)
                if copied == 0:
                    raise CheckpointError(f"an input ends in the middle of `{slot.name}`; it was cut short meanwhile")
                left, position, target = left - copied, position + copied, target + copied

    def digest(self, slot: TensorInfo) -> str:
        """BLAKE3 of a tensor's bytes as they are in the file."""
        with writing(self.partial / slot.file):
            return region_digest(self._fds[slot.file], slot.start, slot.nbytes)

    def finish(self, slot: TensorInfo, digest: str) -> None:
        """Note that a tensor is complete."""
        with writing(self._journal.path):
            self._journal.record(slot.name, digest)

    def commit(self, files: Mapping[str, bytes], manifest: bytes) -> None:
        """Add the files beside the weights, the manifest last, and give the output its name.

        An existing OUT is moved aside first and deleted afterwards: at no moment is it half old, half new. Raises
        OutputError when something appeared at OUT meanwhile that may not be replaced.
        """
        with writing(self.partial):
            for name, content in files.items():
                path = self.partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            (self.partial / MANIFEST_FILE).write_bytes(manifest)
            if self._durable:
                for path in (*self.partial.rglob("*"), self.partial):
                    _sync(path)
            check_replaceable(self.places.out, overwrite=self._overwrite)
            if self.places.out.exists():
                shutil.rmtree(self.places.replaced, ignore_errors=True)
                self.places.out.rename(self.places.replaced)
            self.partial.rename(self.places.out)
            shutil.rmtree(self.places.replaced, ignore_errors=True)
            self._journal.remove()
            if self._durable:
                _sync(self.partial.parent)

    def close(self) -> None:
        """Close all descriptors; what is finished stays in `OUT.partial`."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._journal.close()

    def _claim(self, identity: Mapping[str, object], fresh: bool) -> None:
        if self._journal.identity != identity or fresh or not self.partial.exists():
            if self.partial.exists():
                if not fresh:
                    owner = _difference(self._journal.identity, identity)
                    raise OutputError(
                        f"`{self.partial}` is left from {owner}; run that one to its end, or add `--fresh` to drop its "
                        f"work and start over"
                    )
                shutil.rmtree(self.partial)
            self._journal.begin(identity)
        self.partial.mkdir(exist_ok=True)

    def _create_files(self) -> None:
        present = sum(path.stat().st_blocks * 512 for path in self.partial.iterdir())
        room = os.statvfs(self.partial)
        missing = self._plan.bytes_written - present - room.f_bavail * room.f_frsize
        if missing > 0:
            raise OutputError(
                f"the disk of `{self.places.out}` is too small: the output takes {self._plan.bytes_written:,} bytes, "
                f"{missing:,} more than are free; make room, or choose an OUT on another disk"
            )
        for file in self._plan.files:
            fd = os.open(self.partial / file.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._fds[file.name] = fd
            os.ftruncate(fd, file.size)
            os.pwrite(fd, file.header, 0)


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


def check_output(places: Places, plan: Plan, *, overwrite: bool) -> None:
    """Refuse an OUT that is, contains or lies in an input, or that exists and may not be replaced.

    What is made beside OUT on the way must not touch an input either.
    """
    with writing(places.out):
        if os.path.ismount(places.out) or places.out == places.out.parent:
            raise OutputError(f"`{places.out}` is a mount point, which no rename can replace; choose a directory in it")
        for target in (places.out, places.partial, places.journal, places.replaced):
            _refuse_inputs(Path(os.path.realpath(target)), places.out, plan)
        check_replaceable(places.out, overwrite=overwrite)


def _refuse_inputs(target: Path, out: Path, plan: Plan) -> None:
    for role, checkpoint in plan.inputs.items():
        owned = [checkpoint.root] if checkpoint.is_directory else []
        owned += [shard.path for shard in checkpoint.shards]
        for path in map(Path, map(os.path.realpath, owned)):
            if target == path or target in path.parents or path in target.parents:
                raise OutputError(
                    f"OUT `{out}` (`{target}`) is, contains or lies inside the input `{role}` ({checkpoint.source}); "
                    f"choose another directory"
                )


def check_replaceable(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace what is at `out`, unless it is an empty directory, or a checkpoint and `overwrite` is given."""
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise OutputError(f"`{out}` exists and is no directory; choose another OUT")
    names = {path.name for path in out.iterdir()}
    if names and not overwrite:
        raise OutputError(f"`{out}` exists already; choose another OUT, or add `--overwrite` to replace it")
    if names and not (MANIFEST_FILE in names or any(name.endswith(".safetensors") for name in names)):
        raise OutputError(f"`{out}` exists and holds no checkpoint; `--overwrite` replaces checkpoints only")


def region_digest(fd: int, position: int, nbytes: int) -> str:
    """BLAKE3 (hex) of a region of a file, read through a small buffer. A short file gives another digest."""
    hasher = blake3()
    buffer = memoryview(bytearray(min(COPY_BYTES, nbytes)))
    while nbytes:
        read = os.preadv(fd, [buffer[:nbytes]], position)
        if read == 0:
            break
        hasher.update(buffer[:read])
        position, nbytes = position + read, nbytes - read
    return hasher.hexdigest()


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


def _copy_some(source: int, position: int, target: int, at: int, nbytes: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, nbytes, position, at)
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
    return os.pwrite(target, os.pread(source, min(nbytes, COPY_BYTES), position), at)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _difference(found: Mapping[str, object] | None, expected: Mapping[str, object]) -> str:
    """What the leftovers belong to, in words."""
    if found is None:
        return "something else (its journal cannot be read)"
    differing = [key for key in expected if found.get(key) != expected[key]]
    if differing == ["inputs"]:
        return "inputs that have changed since"
    if "plan" in differing:
        return "another recipe, other parameters or other inputs"
    return f"the same work under another {' and '.join(differing)}"
