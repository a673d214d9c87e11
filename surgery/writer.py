"""Writes an output: every shard at full size beforehand, tensors in place and in any order, one rename at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from surgery.errors import CheckpointError, OutputError
from surgery.journal import Journal
from surgery.plan import COPY_BYTES, Plan, Slot

JOURNAL_FILE = "journal.jsonl"
MANIFEST_FILE = "surgery.json"
_NOT_IN_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


class Writer:
    """The only part that writes. Everything goes into `OUT.partial`, which becomes OUT by one rename.

    `finished` maps the tensors that an earlier, interrupted run of the same work left behind to their digests.
    Raises OutputError when the leftovers belong to other work, another process writes the same output, or the
    disk is too small.
    """

    def __init__(
        self,
        out: Path,
        plan: Plan,
        identity: Mapping[str, object],
        *,
        fresh: bool = False,
        durable: bool = False,
    ) -> None:
        self.out = out
        self.partial = partial_of(out)
        self._plan = plan
        self._durable = durable
        self._fds: dict[str, int] = {}
        with writing(self.partial):
            self.partial.mkdir(parents=True, exist_ok=True)
            if not fresh and not (self.partial / JOURNAL_FILE).exists() and any(self.partial.iterdir()):
                raise OutputError(_left_over(self.partial, "something else (it has no journal)"))
            self._journal = Journal(self.partial / JOURNAL_FILE)
            try:
                self._lock()
                self._claim(identity, fresh)
                self._create_files()
            except BaseException:
                self.close()
                raise

    @property
    def finished(self) -> Mapping[str, str]:
        """Digests of the tensors that are in place."""
        return self._journal.finished

    def write(self, slot: Slot, offset: int, buffer: memoryview) -> None:
        """Put bytes at `offset` of a tensor."""
        position = slot.start + offset
        view = buffer.cast("B")
        with writing(self.partial / slot.file):
            while view:
                written = os.pwrite(self._fds[slot.file], view, position)
                view, position = view[written:], position + written

    def copy(self, slot: Slot, fd: int, position: int) -> None:
        """Copy a whole tensor from another file, inside the kernel where it can; reflinks where the disk can."""
        left, target = slot.nbytes, slot.start
        with writing(self.partial / slot.file):
            while left:
                copied = _copy_some(fd, position, self._fds[slot.file], target, left)
                if copied == 0:
                    raise CheckpointError(f"an input ends in the middle of `{slot.name}`; it was cut short meanwhile")
                left, position, target = left - copied, position + copied, target + copied

    def digest(self, slot: Slot) -> str:
        """BLAKE3 of a tensor's bytes as they are in the file."""
        with writing(self.partial / slot.file):
            return region_digest(self._fds[slot.file], slot.start, slot.nbytes)

    def finish(self, slot: Slot, digest: str) -> None:
        """Note that a tensor is complete."""
        with writing(self._journal.path):
            self._journal.record(slot.name, digest)

    def commit(self, files: Mapping[str, bytes], manifest: bytes) -> None:
        """Add the files beside the weights, the manifest last, and give the output its name.

        An existing OUT is moved aside first and deleted afterwards: at no moment is it half old, half new.
        """
        with writing(self.partial):
            for name, content in files.items():
                path = self.partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            (self.partial / MANIFEST_FILE).write_bytes(manifest)
            if self._durable:
                self._sync()
            self._journal.path.unlink()
        rename_into_place(self.partial, self.out)

    def close(self) -> None:
        """Close all descriptors; what is finished stays in `OUT.partial`."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"another process is writing `{self.out}`; wait for it, or choose another OUT") from error

    def _claim(self, identity: Mapping[str, object], fresh: bool) -> None:
        if self._journal.identity == identity and not fresh:
            return
        others = [path for path in self.partial.iterdir() if path.name != JOURNAL_FILE]
        if others and not fresh:
            raise OutputError(_left_over(self.partial, _difference(self._journal.identity, identity)))
        for path in others:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        self._journal.begin(identity)

    def _create_files(self) -> None:
        present = sum(path.stat().st_blocks * 512 for path in self.partial.iterdir())
        room = os.statvfs(self.partial)
        missing = self._plan.bytes_written - present - room.f_bavail * room.f_frsize
        if missing > 0:
            raise OutputError(
                f"the disk of `{self.out}` is too small: the output takes {self._plan.bytes_written:,} bytes, "
                f"{missing:,} more than are free; make room, or choose an OUT on another disk"
            )
        for file in self._plan.files:
            fd = os.open(self.partial / file.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._fds[file.name] = fd
            os.ftruncate(fd, file.size)
            os.pwrite(fd, file.header, 0)

    def _sync(self) -> None:
        for fd in self._fds.values():
            os.fsync(fd)
        for path in (*self.partial.rglob("*"), self.partial):
            if path.name not in self._fds:
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)


def partial_of(out: Path) -> Path:
    """Where an output lies until it is complete."""
    return out.with_name(out.name + ".partial")


def check_output(out: Path, plan: Plan, *, overwrite: bool) -> None:
    """Refuse an OUT that is, contains or lies in an input, or that exists and may not be replaced."""
    target = Path(os.path.realpath(out))
    for role, checkpoint in plan.inputs.items():
        owned = [checkpoint.root] if checkpoint.is_directory else []
        owned += [shard.path for shard in checkpoint.shards]
        for path in map(Path, map(os.path.realpath, owned)):
            if target == path or target in path.parents or path in target.parents:
                raise OutputError(
                    f"OUT `{out}` is, contains or lies inside the input `{role}` ({checkpoint.source}); choose "
                    f"another directory"
                )
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise OutputError(f"`{out}` exists and is no directory; choose another OUT")
    names = {path.name for path in out.iterdir()}
    if names and not overwrite:
        raise OutputError(f"`{out}` exists already; choose another OUT, or add `--overwrite` to replace it")
    if names and not (MANIFEST_FILE in names or any(name.endswith(".safetensors") for name in names)):
        raise OutputError(f"`{out}` exists and holds no checkpoint; `--overwrite` replaces checkpoints only")


def rename_into_place(partial: Path, out: Path) -> None:
    """Give a complete output its name, replacing what had it."""
    old = out.with_name(f".{out.name}.replaced-by-surgery")
    with writing(out):
        if out.is_dir() and any(out.iterdir()):
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)


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
    except OutputError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room" if full else "see to it"
        raise OutputError(
            f"cannot write `{path}`: {error.strerror or error}; what is finished is kept: {remedy} and run the same "
            f"command again"
        ) from error


def _copy_some(source: int, position: int, target: int, at: int, nbytes: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, nbytes, position, at)
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
    return os.pwrite(target, os.pread(source, min(nbytes, COPY_BYTES), position), at)


def _left_over(partial: Path, owner: str) -> str:
    return (
        f"`{partial}` is left from {owner}; run that one to its end, or add `--fresh` to drop its work and start over"
    )


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
