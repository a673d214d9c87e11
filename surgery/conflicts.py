"""Collects what is wrong between a recipe and its inputs, each kind told once however many tensors it concerns."""

from __future__ import annotations

from surgery.errors import Fault, PlanError
from surgery.recipe import Recipe
from surgery.source import Path


class Conflicts:
    """Collects the conflicts of one recipe with its inputs."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._found: dict[tuple[Path, str], tuple[str, list[str]]] = {}

    def step(self, number: int, message: str) -> None:
        """A conflict of a whole step."""
        self._found.setdefault((("steps", number), message), (message, []))

    def slices(self, message: str, number: int | None = None) -> None:
        """A conflict of one of the recipe's slices, or of all of them together."""
        self._found.setdefault((("slices",) if number is None else ("slices", number), message), (message, []))

    def output(self, key: str, message: str) -> None:
        """A conflict of a key of the recipe's output section."""
        self._found.setdefault((("output", key), message), (f"{key}: {message}", []))

    def add(self, place: Path, kind: str, name: str, message: str) -> None:
        """A conflict of a tensor at a place of the recipe. Of one kind the first is told, and how many there are."""
        self._found.setdefault((place, kind), (message, []))[1].append(name)

    def of_step(self, number: int) -> bool:
        """Whether a step has a conflict already."""
        return any(place == ("steps", number) for place, _ in self._found)

    def raise_all(self) -> None:
        """Raises PlanError if anything was found."""
        faults = []
        for (place, _), (message, names) in sorted(self._found.items(), key=lambda item: _rank(item[0][0])):
            more = f" ({len(names)} tensors in all)" if len(names) > 1 else ""
            ours = place[0] == "output" and not self._recipe.named  # a mergekit file has no section of that name
            where = f"{self._recipe.origin} output" if ours else self._recipe.place(place)
            faults.append(Fault(where, message + more))
        if faults:
            raise PlanError(faults)


def _rank(place: Path) -> tuple[int, int]:
    """The order in which conflicts are told: slices, steps, output."""
    number = next((part for part in place[1:] if isinstance(part, int)), -1)
    return ("slices", "steps", "output").index(str(place[0])), number
