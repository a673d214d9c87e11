"""Positioned reads of tensor bytes, into buffers that the caller owns."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from surgery.closing import Closing
from surgery.errors import CheckpointError
from surgery.header import open_regular

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from surgery.checkpoint import Checkpoint, Shard
    from surgery.header import TensorInfo


class Reader(Closing):
    """Reads tensor bytes of one checkpoint; any number of threads may share it.

    A shard is opened at its first use, and then must have the size and modification time that it had when
    its header was read: otherwise the offsets no longer describe its bytes.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._shards = {shard.name: shard for shard in checkpoint.shards}
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def read_into(self, info: TensorInfo, buffer: Buffer, offset: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from byte `offset` on, by `preadv`, again after short reads.

        `buffer` is a writable C-contiguous buffer of any item type (memoryview, bytearray, NumPy array).
        Raises CheckpointError that names file and tensor, ValueError when the range leaves the tensor.
        """
        view = memoryview(buffer)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        if offset < 0 or offset + len(view) > info.nbytes:
            raise ValueError(f"`{info.name}` has {info.nbytes} bytes; asked for {len(view)} from byte {offset}")
        descriptor = self.fd(info.file)
        position = info.start + offset
        while len(view):
            try:
                count = os.preadv(descriptor, [view], position)
            except OSError as error:
                raise self._fault(info, error.strerror or str(error)) from error
            if count == 0:
                raise self._fault(info, f"the file now ends at byte {position}: it was truncated")
            view = view[count:]
            position += count

    def fd(self, file: str) -> int:
        """An open descriptor of the shard, for `copy_file_range`; the reader's. Raises CheckpointError."""
        descriptor = self._descriptors.get(file)
        if descriptor is not None:
            return descriptor
        with self._lock:
            if self._closed:
                raise ValueError("the reader is closed")
            if file not in self._descriptors:
                self._descriptors[file] = self._open(file)
            return self._descriptors[file]

    def prefetch(self, info: TensorInfo) -> None:
        """Ask the kernel to read the tensor's bytes ahead: a hint, which may be ignored."""
        if hasattr(os, "posix_fadvise") and info.nbytes:
            descriptor = self.fd(info.file)
            with contextlib.suppress(OSError):
                os.posix_fadvise(descriptor, info.start, info.nbytes, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """Raises CheckpointError if a file that was read has been written to since."""
        with self._lock:
            for file, descriptor in self._descriptors.items():
                self._compare(self._shards[file], os.fstat(descriptor))

    def close(self) -> None:
        """Close all descriptors; the reader cannot be used afterwards."""
        with self._lock:
            self._closed = True
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def _open(self, file: str) -> int:
        shard = self._shards[file]
        descriptor, status = open_regular(shard.path)
        try:
            self._compare(shard, status)
        except CheckpointError:
            os.close(descriptor)
            raise
        return descriptor

    @staticmethod
    def _compare(shard: Shard, status: os.stat_result) -> None:
        if (status.st_size, status.st_mtime_ns) != (shard.size, shard.mtime_ns):
            raise CheckpointError(
                f"`{shard.path}` was modified since its header was read ({shard.size} bytes then, "
                f"{status.st_size} now); let whatever writes it finish, and start again with `--fresh`"
            )

    def _fault(self, info: TensorInfo, reason: str) -> CheckpointError:
        path = self._shards[info.file].path
        return CheckpointError(f"`{path}`: tensor `{info.name}` cannot be read: {reason}")
