"""Writes an output: every shard at full size beforehand, tensors in place and in any order, one rename at the end."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

from blake3 import blake3

from surgery.closing import Closing
from surgery.errors import CheckpointError, OutputError
from surgery.header import TensorInfo
from surgery.plan import COPY_BYTES, Plan
from surgery.unfinished import Kind, Places, Unfinished, missing_room, writing

MANIFEST_FILE = "surgery.json"
CHECKPOINT = Kind(
    "checkpoint",
    "another recipe, other parameters",
    lambda names: MANIFEST_FILE in names or any(name.endswith(".safetensors") for name in names),
)
_NOT_IN_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


class Writer(Closing):
    """The only part that writes. Everything goes into `OUT.partial`, which becomes OUT by one rename.

    `identity` says whose work it is; `finished` maps the tensors that an earlier, interrupted run of the same work
    left behind to their digests. `create_files` comes before the first tensor. Raises OutputError when the leftovers
    belong to other work (unless `fresh`, which drops them), or another process writes the same output.
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
        self.out, self.partial = places.out, places.partial
        self._plan = plan
        self._durable = durable
        self._fds: dict[str, int] = {}
        self._unfinished = Unfinished(places, CHECKPOINT, identity, overwrite=overwrite, fresh=fresh)

    @property
    def finished(self) -> Mapping[str, str]:
        """Digests of the tensors that are in place."""
        return self._unfinished.finished

    @property
    def size(self) -> int:
        """Bytes of the tensor files."""
        return self._plan.bytes_written

    def create(self) -> None:
        """Create the tensor files, each at full size and with its header."""
        with writing(self.partial):
            for file in self._plan.files:
                fd = os.open(self.partial / file.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._fds[file.name] = fd
                os.ftruncate(fd, file.size)
                os.pwrite(fd, file.header, 0)

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
        self._unfinished.record(slot.name, digest)

    def commit(self, files: Mapping[str, bytes], manifest: bytes) -> None:
        """Add the files beside the weights, the manifest last, and give the output its name.

        Raises OutputError when something appeared at OUT meanwhile that may not be replaced.
        """
        with writing(self.partial):
            for name, content in files.items():
                path = self.partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            (self.partial / MANIFEST_FILE).write_bytes(manifest)
        self._unfinished.publish(durable=self._durable)

    def close(self) -> None:
        """Close all descriptors; what is finished stays in `OUT.partial`."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._unfinished.close()


def create_files(writers: Sequence[Writer]) -> None:
    """Create every tensor file at full size, with its header, once it is known that all of them find room.

    Raises OutputError when a disk is too small for what is to lie on it.
    """
    disks: dict[int, list[Writer]] = defaultdict(list)
    for writer in writers:
        with writing(writer.partial):
            disks[writer.partial.stat().st_dev].append(writer)
    for sharing in disks.values():
        _check_room(sharing)
    for writer in writers:
        writer.create()


def _check_room(writers: Sequence[Writer]) -> None:
    """Refuse outputs that do not fit together on the disk that they share."""
    size = sum(writer.size for writer in writers)
    missing = missing_room(size, [writer.partial for writer in writers])
    if missing > 0:
        outputs = "the output takes" if len(writers) == 1 else f"the {len(writers)} outputs there take"
        raise OutputError(
            f"the disk of `{writers[0].out}` is too small: {outputs} {size:,} bytes, {missing:,} more than are free; "
            f"make room, or choose an OUT on another disk"
        )


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


def _copy_some(source: int, position: int, target: int, at: int, nbytes: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, nbytes, position, at)
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
    return os.pwrite(target, os.pread(source, min(nbytes, COPY_BYTES), position), at)
