"""The directory of decompositions: what comes out of it, and what can happen to it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

import surgery
from surgery import decompositions as module
from surgery.decompositions import Decompositions, default_directory, open_decompositions
from surgery.errors import SurgeryError
from surgery.spectral import decomposer
from surgery.spectral.decomposer import Decomposer
from surgery.spectral.triplets import Triplets
from tests.pairs import files, llama, near, write
from tests.strategies import SPECTRA, weight

SIDE = 24  # what is worth keeping in these tests: matrices from here on


@pytest.fixture(autouse=True)
def _small_matrices_count(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "SMALLEST_SIDE", SIDE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "surgery"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was computed rather than found: head and tail, or `values`."""
    done: list[object] = []
    outer, values = decomposer.outer_triplets, decomposer.singular_values

    def outer_recorded(W: Tensor, head: int, tail: int = 0) -> Triplets:
        done.append((head, tail))
        return outer(W, head, tail)

    def values_recorded(W: Tensor) -> Tensor:
        done.append("values")
        return values(W)

    monkeypatch.setattr(decomposer, "outer_triplets", outer_recorded)
    monkeypatch.setattr(decomposer, "singular_values", values_recorded)
    return done


def matrix(seed: int = 0, kind: str = "decaying", shape: tuple[int, int] = (60, 40)) -> Tensor:
    return weight(torch.Generator().manual_seed(seed), kind, *shape).float()


def same(found: Triplets, expected: Triplets) -> bool:
    """Equal bits, and equal layout."""
    pairs = [(getattr(found, name), getattr(expected, name)) for name in ("U", "S", "V")]
    return all(a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b) for a, b in pairs)


def entries(place: Path) -> list[Path]:
    return sorted(place.glob("??/*"))


def nbytes(place: Path) -> int:
    return sum(path.stat().st_size for path in entries(place))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize(("head", "tail"), [(8, 0), (1, 0), (0, 1), (8, 3), (40, 0)])
def test_a_hit_has_the_bits_of_a_computation(
    place: Path, computed: list[object], head: int, tail: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """For every kind of spectrum, in another object than the one that stored it; and it is not computed again."""
    for kind in SPECTRA:
        W = matrix(0, kind, shape).to(dtype)
        kept = W.clone()
        expected, values = Decomposer().triplets(W, head, tail), Decomposer().values(W)
        stored = Decompositions(place)
        assert same(stored.triplets(W, head, tail), expected)
        assert torch.equal(stored.values(W), values)
        computed.clear()
        found = Decompositions(place)
        assert same(found.triplets(W.clone(), head, tail), expected)
        assert torch.equal(found.values(W.clone()), values)
        assert computed == []
        assert torch.equal(W, kept)
    assert stored.problem is None


def test_results_are_the_callers_own(place: Path) -> None:
    """What a caller writes into a result reaches neither the directory nor the next caller."""
    W = matrix()
    expected = Decomposer().triplets(W, 8)
    for _ in range(3):
        found = Decompositions(place).triplets(W, 8)
        assert same(found, expected)
        for X in (found.U, found.S, found.V):
            X.zero_()


def _with_one_bit_changed(W: Tensor) -> Tensor:
    changed = W.clone()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(9.0))
    return changed


@pytest.mark.parametrize(
    ("other", "head", "tail"),
    [
        (lambda W: W, 9, 0),
        (lambda W: W, 8, 1),
        (lambda W: W, 7, 1),
        (Tensor.double, 8, 0),
        (_with_one_bit_changed, 8, 0),
        (lambda W: W.view(40, 60), 8, 0),
        (lambda W: W.mT, 8, 0),
    ],
    ids=["head", "tail", "both", "dtype", "content", "shape", "transposed"],
)
def test_anything_else_is_computed(
    place: Path, computed: list[object], other: Callable[[Tensor], Tensor], head: int, tail: int
) -> None:
    """Another head, tail, dtype, shape or element is another decomposition."""
    W = matrix()
    cached = Decompositions(place)
    cached.triplets(W, 8)
    computed.clear()
    found = cached.triplets(other(W), head, tail)
    assert computed == [(head, tail)]
    assert same(found, Decomposer().triplets(other(W), head, tail))


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (module, "FORMAT", module.FORMAT + 1),
        (torch, "__version__", "9.9"),
        (torch, "get_num_threads", lambda: 99),
        (torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS"),
        (module, "_processor", lambda: "another"),
    ],
    ids=["format", "torch", "threads", "instructions", "processor"],
)
def test_what_decides_over_bits_is_part_of_the_key(
    place: Path, computed: list[object], monkeypatch: pytest.MonkeyPatch, owner: object, name: str, value: object
) -> None:
    """Entries of another format, torch, processor or number of threads are not used where bits count."""
    W = matrix()
    Decompositions(place).triplets(W, 8)
    Decompositions(place).values(W)
    computed.clear()
    monkeypatch.setattr(owner, name, value)
    Decompositions(place).triplets(W, 8)
    Decompositions(place).values(W)
    assert computed == [(8, 0), "values"]


def test_longer_entries_serve_where_bits_do_not_count(place: Path, computed: list[object]) -> None:
    """Without `exact` the leading triplets of more are taken, of the fewest that do; never of too few."""
    W = matrix()
    stored = Decompositions(place)
    by_head = {head: stored.triplets(W, head, tail) for head, tail in ((30, 0), (12, 5), (4, 0))}
    stored.triplets(matrix(1), 20)
    computed.clear()
    close = Decompositions(place, exact=False)
    for head, source in ((5, 12), (12, 12), (13, 30), (3, 4)):
        found, longer = close.triplets(W, head), by_head[source]
        assert same(found, Triplets(longer.U[:, :head].clone(), longer.S[:head].clone(), longer.V[:, :head].clone()))
    assert computed == []
    close.triplets(W, 31)
    close.triplets(W, 3, 5)
    Decompositions(place).triplets(W, 11)
    assert computed == [(31, 0), (3, 5), (11, 0)]


def test_other_machines_entries_serve_where_bits_do_not_count(
    place: Path, computed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `exact` values and triplets of another processor are taken, the same and no others."""
    W = matrix()
    stored = Decompositions(place)
    expected, leading, values = stored.triplets(W, 8, 2), stored.triplets(W, 9), stored.values(W)
    computed.clear()
    monkeypatch.setattr(module, "_processor", lambda: "another")
    close = Decompositions(place, exact=False)
    assert same(close.triplets(W, 8, 2), expected)
    assert same(close.triplets(W, 9), leading)
    assert torch.equal(close.values(W), values)
    assert computed == []
    close.triplets(W, 8, 3)
    assert computed == [(8, 3)]


def _other_payload(path: Path) -> None:
    tensors = load(path.read_bytes())
    tensors["U"][3, 3] += 1
    _save(path, tensors)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    save_file(tensors, path, header["__metadata__"])


def _exchanged(path: Path) -> None:
    tensors = load(path.read_bytes())
    _save(path, {"U": tensors["V"], "S": tensors["S"], "V": tensors["U"]})


def _one_bit(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 16
    path.write_bytes(raw)


def _of_another_matrix(path: Path) -> None:
    Decompositions(path.parents[1]).triplets(matrix(1), 8)
    (other,) = (each for each in entries(path.parents[1]) if each != path)
    other.replace(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "seven bytes": lambda path: path.write_bytes(b"\0" * 7),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "header alone": lambda path: os.truncate(path, 300),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "last bit": lambda path: _one_bit(path, -1),
    "length bit": lambda path: _one_bit(path, 6),
    "payload": _other_payload,
    "factors exchanged": _exchanged,
    "text": lambda path: path.write_text("a shopping list"),
    "list": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "nested": lambda path: path.write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5),
    "others' safetensors": lambda path: save_file({"weight": torch.ones(3)}, path, {"format": "pt"}),
    "no metadata": lambda path: save_file({"weight": torch.ones(3)}, path),
    "another matrix": _of_another_matrix,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("exact", [True, False])
def test_damaged_entries_are_made_anew(
    place: Path, computed: list[object], damage: Callable[[Path], object], exact: bool
) -> None:
    """Whatever stands under an entry's name is checked; what is not it is computed, and replaced."""
    W = matrix()
    expected = Decompositions(place).triplets(W, 8)
    (path,) = entries(place)
    whole = load(path.read_bytes())
    damage(path)
    computed.clear()
    cached = Decompositions(place, exact=exact)
    assert same(cached.triplets(W, 8), expected)
    assert computed == [(8, 0)]
    found = load(path.read_bytes())
    assert all(torch.equal(found[name], X) for name, X in whole.items())
    assert same(cached.triplets(W, 8), expected)
    assert computed == [(8, 0)]
    assert cached.problem is None


def test_every_byte_of_the_header_counts(place: Path, computed: list[object]) -> None:
    """Wherever a bit of it is wrong, the entry is made anew."""
    W = matrix(shape=(SIDE, SIDE))
    expected = Decompositions(place).triplets(W, 8)
    (path,) = entries(place)
    whole = path.read_bytes()
    computed.clear()
    positions = range(8 + int.from_bytes(whole[:8], "little"))
    for position in positions:
        path.write_bytes(whole)
        _one_bit(path, position)
        assert same(Decompositions(place).triplets(W, 8), expected)
    assert len(computed) == len(positions)


def test_damaged_entry_is_deleted(place: Path) -> None:
    """Even where nothing takes its place."""
    W = matrix()
    Decompositions(place).triplets(W, 8)
    (path,) = entries(place)
    path.write_bytes(b"")
    Decompositions(place, limit=1).triplets(W, 8)
    assert entries(place) == []


def used(place: Path, count: int) -> Iterator[tuple[Tensor, Path]]:
    """So many matrices whose entries were used an hour ago, one a second, in this order."""
    for seed in range(count):
        before = set(entries(place))
        W = matrix(seed)
        Decompositions(place).triplets(W, 8)
        (path,) = set(entries(place)) - before
        os.utime(path, (time.time() - 3600 + seed,) * 2)
        yield W, path


def test_least_recently_used_entries_make_room(place: Path) -> None:
    """Those that were found are young again; the oldest go, and no more of them than needed for a tenth of room."""
    known = list(used(place, 10))
    size = nbytes(place) // 10
    cached = Decompositions(place, limit=10 * size + size // 2)
    cached.triplets(known[0][0], 8)
    cached.triplets(known[2][0], 8)
    cached.triplets(matrix(99), 8)
    assert [path.exists() for _, path in known] == [True, False, True, False, *[True] * 6]


def test_size_stays_below_the_limit(place: Path) -> None:
    """After each of many stores, of a directory that was full before, and of one that two objects fill."""
    list(used(place, 6))
    limit = nbytes(place) * 5 // 6
    cached = Decompositions(place, limit)
    for seed in range(10, 30):
        cached.triplets(matrix(seed), 8)
        assert limit // 2 < nbytes(place) <= limit
    both = Decompositions(place, limit), Decompositions(place, limit)
    for seed in range(30, 60):
        both[seed % 2].triplets(matrix(seed), 8)
        assert nbytes(place) <= limit * (1 + 1 / module.SCANNED_PART)


def test_directory_is_looked_through_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each store, as long as there is room."""
    scans = []
    scan = module._scan
    monkeypatch.setattr(module, "_scan", lambda directory: scans.append(1) or scan(directory))
    cached = Decompositions(place)
    for seed in range(10):
        cached.triplets(matrix(seed), 8)
    assert len(scans) == 1


def test_large_entries_are_not_kept(place: Path) -> None:
    """One that would fill more than a quarter pushes nothing out."""
    W = matrix()
    Decompositions(place).triplets(W, 8)
    size = nbytes(place)
    cached = Decompositions(place, limit=4 * size)
    cached.triplets(matrix(1), 20)
    assert nbytes(place) == size
    cached.triplets(matrix(1), 7)
    assert nbytes(place) > size
    assert cached.problem is None


def test_a_run_that_would_not_fit_keeps_nothing(
    place: Path, computed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last entries would push out the first; what is there already is used all the same."""
    monkeypatch.setenv("SURGERY_CACHE", str(place))
    monkeypatch.setenv("SURGERY_CACHE_SIZE", "1MB")
    open_decompositions(expected=1_000_000).triplets(matrix(), 8)
    assert len(entries(place)) == 1
    too_large = open_decompositions(expected=1_000_001)
    too_large.triplets(matrix(), 8)
    assert computed == [(8, 0)]
    too_large.triplets(matrix(seed=1), 8)
    assert len(entries(place)) == 1


def test_small_matrices_are_not_kept(place: Path, computed: list[object]) -> None:
    """They are computed as fast as they would be read; the directory is not even made."""
    cached = Decompositions(place)
    for shape in ((SIDE - 1, 100), (100, SIDE - 1)):
        W = matrix(shape=shape)
        for _ in range(2):
            assert same(cached.triplets(W, 8), Decomposer().triplets(W, 8))
            assert torch.equal(cached.values(W), Decomposer().values(W))
    assert len(computed) == 16
    assert not place.exists()


def test_only_own_files_are_touched(place: Path) -> None:
    """Whoever points `$SURGERY_CACHE` at a directory of models loses none of them."""
    others = [place / name for name in ("v1/model.safetensors", "v1/.x.partial", "notes", "aa/b/c")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10**5)
        os.utime(path, (1, 1))
    Decompositions(place, limit=4 * 10**4).triplets(matrix(), 8)
    assert all(path.exists() for path in others)
    assert len(list(place.rglob("*-8-0-*.safetensors"))) == 1


def test_directory_is_the_users_own(place: Path) -> None:
    """No one else may read what is in it."""
    before = os.umask(0)
    try:
        Decompositions(place).triplets(matrix(), 8)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (place, entries(place)[0].parent)] == [0o700, 0o700]


def _full(self: Path, content: bytes) -> NoReturn:
    with self.open("wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))


def test_a_full_disk_stops_the_keeping(place: Path, computed: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are right, `problem` says what happened, no further write is tried, and entries are still found."""
    known, expected = matrix(), Decompositions(place).triplets(matrix(), 8)
    before = entries(place)
    cached = Decompositions(place)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", _full)
        assert same(cached.triplets(matrix(1), 8), Decomposer().triplets(matrix(1), 8))
    assert cached.problem is not None
    assert f"`{place}` cannot be written: No space left on device" in cached.problem
    cached.triplets(matrix(2), 8)
    assert entries(place) == before
    computed.clear()
    assert same(cached.triplets(known, 8), expected)
    assert computed == []


def test_a_read_only_directory_is_read(place: Path, computed: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are found, and checked; nothing is touched, deleted or stored, and that is no error."""
    known = [matrix(seed) for seed in range(2)]
    expected = [Decompositions(place).triplets(W, 8) for W in known]
    _one_bit(Decompositions(place)._path(known[1], "8-0"), -1)
    before = files(place)
    for name in ("utime", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, _read_only)
    monkeypatch.setattr(Path, "write_bytes", _read_only)
    computed.clear()
    cached = Decompositions(place)
    assert same(cached.triplets(known[0], 8), expected[0])
    assert computed == []
    assert cached.problem is None
    assert same(cached.triplets(known[1], 8), expected[1])
    assert computed == [(8, 0)]
    assert cached.problem is not None
    assert "Read-only file system" in cached.problem
    monkeypatch.undo()
    assert files(place) == before


def _read_only(path: object, *_: object, **__: object) -> NoReturn:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def test_a_file_in_place_of_the_directory_stops_the_keeping(place: Path) -> None:
    """`$SURGERY_CACHE` that names a file, or something below one, is a problem and no error."""
    place.parent.mkdir()
    place.write_text("")
    for directory in (place, place / "below"):
        for exact in (True, False):
            cached = Decompositions(directory, exact=exact)
            assert same(cached.triplets(matrix(), 8), Decomposer().triplets(matrix(), 8))
            assert cached.problem is not None


def test_entries_that_vanish_were_not_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may delete any file between our looking and our reading, or between two steps of a clean-up."""
    known = list(used(place, 4))
    candidates = module._others

    def vanishing(path: Path, head: int | None) -> list[Path]:
        found = candidates(path, head)
        for each in found:
            each.unlink()
        return found

    monkeypatch.setattr(module, "_others", vanishing)
    W = known[0][0]
    assert same(Decompositions(place, exact=False).triplets(W, 5), Decomposer().triplets(W, 5))
    scan = module._scan

    def stale(directory: Path) -> list[tuple[float, int, Path]]:
        found = scan(directory)
        known[1][1].unlink()
        return found

    monkeypatch.setattr(module, "_scan", stale)
    cached = Decompositions(place, limit=nbytes(place))
    cached.triplets(matrix(9), 8)
    assert cached.problem is None


STEPS: dict[str, list[dict[str, Any]]] = {
    "none": [{"op": "restore_directions", "from": "base", "head": "20%"}],
    "rotate": [{"op": "restore_directions", "from": "base", "head": 5, "tail": 4, "orthogonalize": "rotate"}],
    "polar": [{"op": "restore_directions", "from": "base", "head": 1, "orthogonalize": "polar"}],
    "swap": [{"op": "swap_directions", "from": "base"}],
    "values": [{"op": "restore_values", "from": "base"}],
    "rank": [
        {"op": "truncate_rank", "rank": 7},
        {"op": "reset_layers", "from": "base", "select": {"tensors": ["norm"]}},
    ],
    "two": [{"op": "restore_directions", "from": "base", "head": "20%"}, {"op": "restore_values", "from": "base"}],
}


@pytest.fixture
def apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], dict[str, bytes]]:
    """`apply("rotate", "off")` makes the edit of that name with that `$SURGERY_CACHE`; the files of the output."""
    base = llama(layers=1, width=SIDE, vocabulary=40)
    models = write(tmp_path / "base", base), write(tmp_path / "sft", near(base))

    def run(steps: str, cache: str) -> dict[str, bytes]:
        monkeypatch.setenv("SURGERY_CACHE", cache)
        recipe = {"name": steps, "models": ["base", "sft"], "steps": STEPS[steps]}
        return files(surgery.apply(recipe, models, tmp_path / "out", overwrite=True).out)

    return run


@pytest.mark.parametrize("steps", STEPS)
def test_output_does_not_depend_on_the_directory(
    place: Path, apply: Callable[[str, str], dict[str, bytes]], computed: list[object], steps: str
) -> None:
    """Every edit gives the same bytes without it, with an empty one, and with one that holds all it needs."""
    expected = apply(steps, "off")
    assert not place.exists()
    assert apply(steps, str(place)) == expected
    assert entries(place)
    everything = list(computed)
    computed.clear()
    assert apply(steps, str(place)) == expected
    assert len(computed) < len(everything) / 4


def test_intermediate_results_are_not_kept(
    place: Path, apply: Callable[[str, str], dict[str, bytes]], computed: list[object]
) -> None:
    """Of two steps the decompositions of both models are kept, and not those of what the first step made."""
    apply("two", str(place))
    kept = len(entries(place))
    kinds = sorted({path.name[65:].rpartition("-")[0] for path in entries(place)})
    assert kinds == ["5-0", "values"]
    computed.clear()
    apply("two", str(place))
    large = [asked for asked in computed if asked == (SIDE, 0)]
    assert len(large) == kept // 3  # 20 % of two models and the values of one, for each matrix
    assert len(entries(place)) == kept


def test_threads_share_a_directory(place: Path) -> None:
    """Many at once, the same matrices, a directory too small for all: every result is right."""
    matrices = [matrix(seed) for seed in range(6)] * 5
    expected = [Decomposer().triplets(W, 8) for W in matrices[:6]] * 5
    Decompositions(place).triplets(matrices[0], 8)
    cached = Decompositions(place, limit=nbytes(place) * 4 + 99)
    with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = list(pool.map(lambda W: cached.triplets(W, 8), matrices))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert cached.problem is None
    assert not list(place.glob("??/.*"))


PROCESS = """
import sys, torch
from pathlib import Path
from surgery import decompositions
from surgery.spectral.decomposer import Decomposer
from tests.test_decompositions import matrix, same
decompositions.SMALLEST_SIDE = 24
torch.set_num_threads(1)
cached = decompositions.Decompositions(Path(sys.argv[1]), limit=int(sys.argv[2]))
for seed in [*range(12)] * 4:
    assert same(cached.triplets(matrix(seed), 8), Decomposer().triplets(matrix(seed), 8)), seed
print(cached.problem)
"""


def _processes(place: Path, limit: int, count: int) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROCESS, str(place), str(limit)]
    root = Path(__file__).parent.parent
    return [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(count)]


def test_processes_share_a_directory(place: Path) -> None:
    """Two that store, find and delete the same entries all get what they would have computed."""
    Decompositions(place).triplets(matrix(0), 8)
    running = _processes(place, 5 * nbytes(place), 2)
    assert [process.communicate()[0].strip() for process in running] == ["None", "None"]
    assert [process.returncode for process in running] == [0, 0]
    assert 0 < len(entries(place)) <= 6


def _killed(place: Path, position: int) -> None:
    """Store a matrix in a process that is killed in the middle of a write (0), before (1) or after the rename (2)."""
    made = Decomposer().triplets(matrix(), 8)  # torch computes nothing more in a fork
    path, tensors = Decompositions(place)._path(matrix(), "8-0"), {"U": made.U, "S": made.S, "V": made.V}
    pid = os.fork()
    if pid == 0:
        write, rename = Path.write_bytes, Path.replace

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def half(self: Path, content: bytes) -> None:
            write(self, content[: len(content) // 2])
            die()

        def renamed(self: Path, target: Path) -> None:
            if position == 2:
                rename(self, target)
            die()

        if position == 0:
            Path.write_bytes = half  # type: ignore[method-assign, assignment]
        Path.replace = renamed  # type: ignore[method-assign, assignment]
        try:
            Decompositions(place)._keep(path, tensors)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("position", [0, 1, 2])
def test_kills_leave_no_half_entry(place: Path, computed: list[object], position: int) -> None:
    """What a killed process left is an entry, or a file that the next run deletes once it is an hour old."""
    _killed(place, position)
    left = entries(place)
    assert [path.suffix for path in left] == [".safetensors" if position == 2 else ".partial"]
    computed.clear()
    assert same(Decompositions(place).triplets(matrix(), 8), Decomposer().triplets(matrix(), 8))
    assert len(computed) == (1 if position == 2 else 2)
    assert left[0].exists()  # it might be at work
    os.utime(left[0], (time.time() - 2 * module.ABANDONED,) * 2)
    Decompositions(place).triplets(matrix(1), 8)
    assert [path.suffix for path in entries(place)] == [".safetensors"] * 2


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SURGERY_CACHE": "/scratch/svd"}, "/scratch/svd"),
        ({"SURGERY_CACHE": "/scratch/svd", "XDG_CACHE_HOME": "/xdg"}, "/scratch/svd"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/surgery/decompositions"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/ada/.cache/surgery/decompositions"),
        ({"XDG_CACHE_HOME": ""}, "/home/ada/.cache/surgery/decompositions"),
        ({}, "/home/ada/.cache/surgery/decompositions"),
        ({"SURGERY_CACHE": "off"}, None),
        ({"SURGERY_CACHE": "OFF", "XDG_CACHE_HOME": "/xdg"}, None),
        ({"SURGERY_CACHE": "0"}, None),
        ({"SURGERY_CACHE": ""}, None),
    ],
)
def test_environment_names_the_directory(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    """`$SURGERY_CACHE`, then the user's cache directory; `off`, `0` and nothing switch it off."""
    for name in ("SURGERY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/ada", **environment}.items():
        monkeypatch.setenv(name, value)
    assert default_directory() == (expected and Path(expected))
    opened = open_decompositions(exact=False)
    assert type(opened) is (Decompositions if expected else Decomposer)
    assert type(open_decompositions(enabled=False)) is Decomposer


def test_no_home_means_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home directory computes."""

    def homeless() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SURGERY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_directory() is None
    assert type(open_decompositions()) is Decomposer


def test_environment_sets_the_size(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """10 GB, or `$SURGERY_CACHE_SIZE`; what is no size is an error that says so, unless nothing is kept anyway."""
    monkeypatch.setenv("SURGERY_CACHE", str(place))
    monkeypatch.delenv("SURGERY_CACHE_SIZE", raising=False)
    opened = open_decompositions()
    assert isinstance(opened, Decompositions)
    assert (opened.directory, opened.limit) == (place, 10**10)
    monkeypatch.setenv("SURGERY_CACHE_SIZE", "20GB")
    opened = open_decompositions()
    assert isinstance(opened, Decompositions)
    assert opened.limit == 2 * 10**10
    for wrong in ("20", "much", "", "0GB"):
        monkeypatch.setenv("SURGERY_CACHE_SIZE", wrong)
        with pytest.raises(SurgeryError, match=f"`SURGERY_CACHE_SIZE`: found `{wrong}`; expected a size with its unit"):
            open_decompositions()
        open_decompositions(enabled=False)


def test_tests_use_no_directory_of_the_users() -> None:
    """In this session, and in the processes that it starts, nothing is kept unless a test says where."""
    assert os.environ["SURGERY_CACHE"] == "off"
    assert default_directory() is None
