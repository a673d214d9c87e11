"""The directory of a comparison: what is measured so far while it is made, tables and spectra once it is complete.

- `matrices.parquet`, `gauge.parquet`, `embeddings.parquet`: the tables of `Comparison`
- `spectra.npz`: its arrays
- `summary.json`: the models, the settings, the headline figures, the identity of the work; written last
- `report.html`, and `figures/` with each figure as PNG and SVG

Until then `OUT.partial` holds a `measured/NUMBER.npz` for each matrix: its arrays, and its rows as JSON.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from surgery.analysis.comparison import Comparison
from surgery.closing import Closing
from surgery.errors import CheckpointError, SurgeryError
from surgery.unfinished import Kind, Places, Unfinished, writing
from surgery.whole_file import as_json, write_whole

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from surgery.analysis.comparison import Array

FORMAT = 1
SUMMARY = "summary.json"
SPECTRA = "spectra.npz"
REPORT = "report.html"
FIGURES = "figures"
TABLES = ("matrices", "gauge", "embeddings")
COMPARISON = Kind(
    "comparison", "another comparison (other models, ranks or tensors)", lambda names: {SUMMARY, SPECTRA} <= names
)
_MEASURED = "measured"
_ROWS = "rows"  # the member of a measured file that holds its rows
_HIDDEN = "right/"  # arrays that later steps need, and nobody else

Row = dict[str, Any]


class Store(Closing):
    """A comparison on its way to the directory OUT. Raises OutputError as `Unfinished` does."""

    def __init__(
        self, places: Places, identity: Mapping[str, object], *, overwrite: bool = False, fresh: bool = False
    ) -> None:
        self._unfinished = Unfinished(places, COMPARISON, identity, overwrite=overwrite, fresh=fresh)
        self.directory = places.partial
        self._measured = self.directory / _MEASURED
        try:
            with writing(self._measured):
                self._measured.mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise

    def has(self, name: str, number: int) -> bool:
        """Whether an earlier run has measured this, and what it wrote is undamaged."""
        digest = self._unfinished.finished.get(name)
        if digest is None:
            return False
        try:
            return blake3(self._path(number).read_bytes()).hexdigest() == digest
        except OSError:
            return False

    def save(self, name: str, number: int, rows: Sequence[Row], arrays: Mapping[str, Array]) -> None:
        """Keep what was measured; several threads may."""
        content = io.BytesIO()
        encoded = np.frombuffer(json.dumps(rows).encode(), np.uint8)
        with zipfile.ZipFile(content, "w") as archive:
            for key, array in {_ROWS: encoded, **arrays}.items():
                _add(archive, key, array)
        data = content.getvalue()
        with writing(self._path(number)):
            write_whole(self._path(number), data)
        self._unfinished.record(name, blake3(data).hexdigest())

    def rows(self, number: int) -> list[Row]:
        """The rows that were measured."""
        with np.load(self._path(number)) as archive:
            found: list[Row] = json.loads(archive[_ROWS].tobytes())
        return found

    def array(self, number: int, key: str) -> Array:
        """One of the arrays that were measured."""
        with np.load(self._path(number)) as archive:
            found: Array = archive[key]
        return found

    def write_spectra(self, names: Sequence[tuple[str, int]], others: Mapping[str, Array]) -> Spectra:
        """All arrays in one file, one matrix after the other; `others` are those of no matrix."""
        path = self.directory / SPECTRA
        with writing(path), zipfile.ZipFile(path, "w") as archive:
            for name, number in names:
                with np.load(self._path(number)) as measured:
                    for key in measured.files:
                        if key != _ROWS and not key.startswith(_HIDDEN):
                            _add(archive, f"{name}/{key}", measured[key])
            for key, array in others.items():
                _add(archive, key, array)
        return Spectra(path)

    def write_tables(self, comparison: Comparison) -> None:
        """The three tables, as Parquet."""
        for name in TABLES:
            frame: pd.DataFrame = getattr(comparison, name)
            content = io.BytesIO()
            frame.to_parquet(content, index=False)
            self.write(f"{name}.parquet", content.getvalue())

    def write(self, name: str, content: bytes) -> None:
        """A file of the output."""
        path = self.directory / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            write_whole(path, content)

    def make(self, name: str) -> Path:
        """A directory of the output."""
        path = self.directory / name
        with writing(path):
            path.mkdir(exist_ok=True)
        return path

    def publish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, give the output its name, and then drop what was only needed on the way.

        In this order a kill loses no measurement: what is left of `measured` goes when the output is next read.
        """
        self.write(SUMMARY, as_json(summary))
        self._unfinished.publish()
        shutil.rmtree(self._unfinished.places.out / _MEASURED, ignore_errors=True)

    def close(self) -> None:
        """Release the lock; what is measured stays."""
        self._unfinished.close()

    def _path(self, number: int) -> Path:
        return self._measured / f"{number:06}.npz"


class Spectra(Mapping[str, "Array"]):
    """The arrays of a comparison's file, read one at a time."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)  # open for good: its directory may have a million entries
        self._names = dict.fromkeys(name.removesuffix(".npy") for name in self._archive.namelist())

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        with self._archive.open(f"{name}.npy") as file:
            found: Array = np.lib.format.read_array(file, allow_pickle=False)  # type: ignore[no-untyped-call]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def read(directory: Path) -> Comparison:
    """A finished comparison. Raises CheckpointError for a directory that holds none, or a damaged one."""
    import pandas as pd

    shutil.rmtree(directory / _MEASURED, ignore_errors=True)  # a kill may have left it
    try:
        summary = json.loads((directory / SUMMARY).read_bytes())
        if summary["format"] != FORMAT:
            raise CheckpointError(
                f"`{directory}` has format {summary['format']}, this version reads {FORMAT}; compare the models again"
            )
        tables = {name: pd.read_parquet(directory / f"{name}.parquet") for name in TABLES}
        return Comparison(
            models=summary["models"],
            ranks=tuple(summary["ranks"]),
            quick=summary["quick"],
            decoder=summary["decoder"],
            remarks=tuple(summary["remarks"]),
            spectra=Spectra(directory / SPECTRA),
            **tables,
        )
    except SurgeryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"`{directory}` holds no comparison that can be read ({error}); expected the output of `surgery diff`: "
            "make it anew with `--overwrite`"
        ) from error


def is_whole(directory: Path) -> bool:
    """Whether every file that a finished comparison has beside its figures is there."""
    return all((directory / name).is_file() for name in (SUMMARY, SPECTRA, REPORT, *(f"{t}.parquet" for t in TABLES)))


def summary_of(directory: Path) -> Mapping[str, Any] | None:
    """The summary of a finished comparison, or None where there is none."""
    try:
        found = json.loads((directory / SUMMARY).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _add(archive: zipfile.ZipFile, key: str, array: NDArray[Any]) -> None:
    with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as file:  # ZipInfo: no time in the bytes
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)  # type: ignore[no-untyped-call]
