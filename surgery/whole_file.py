"""Files that are written at once, or not at all."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, in place of one of that name; a kill or a full disk leaves that one as it was. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.partial")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def as_json(content: Mapping[str, Any]) -> bytes:
    """Plain data as a file for people and programs; what is not UTF-8, as a path may be, is written as an escape."""
    return f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode("utf-8", "backslashreplace")
