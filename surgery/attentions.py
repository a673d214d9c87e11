"""Which attention modules a step turns, what it reads of them, and everything that can be wrong with that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

from surgery.checkpoint import Checkpoint
from surgery.conflicts import Conflicts
from surgery.counterparts import Counterparts
from surgery.heads import Heads, Projection, find_heads, why_not_apart
from surgery.ops.base import RESULT, Op
from surgery.partners import Partners
from surgery.plan import Source
from surgery.stacking import Stacking

_TOGETHER = "value projection, its bias and output projection turn together"


class Attentions:
    """The attention modules of what is edited, for operations of the kind `heads`; conflicts go to `conflicts`."""

    def __init__(
        self,
        inputs: Mapping[str, Checkpoint],
        stacking: Stacking,
        counterparts: Counterparts,
        conflicts: Conflicts,
    ) -> None:
        self._inputs = inputs
        self._stacking = stacking
        self._counterparts = counterparts
        self._conflicts = conflicts
        self._found: dict[str, dict[str, Heads | str]] = {}
        self._partners: dict[tuple[int, str], Partners | None] = {}

    def select(self, number: int, op: Op, names: Sequence[str]) -> list[str]:
        """Of the selected tensors, those that a step edits. What may not be turned, or not alone, is a conflict."""
        chosen = [name for name in names if name in self._by_part]
        self._refuse_strange(number, op, [name for name in names if name not in self._by_part])
        present = set(chosen)
        for heads in dict.fromkeys(self._by_part[name] for name in chosen):
            missing = [name for name in heads.parts.values() if name not in present]
            if missing:
                one = next(name for name in heads.parts.values() if name in present)
                message = f"`{one}` is edited and `{missing[0]}` is not: {_TOGETHER}; select all of them, or none"
                self._add(number, "some", one, message)
        return chosen

    def partners(self, number: int, op: Op, name: str, running: Callable[[str], Source | None]) -> Partners | None:
        """What a step reads of the module of a tensor that it edits, or None and a conflict.

        `running` gives for a tensor what the step gets, or None where an earlier step computes it.
        """
        heads = self._by_part[name]
        if (number, heads.module) not in self._partners:
            (role,) = op.reads
            self._partners[number, heads.module] = self._bind(number, op, role, heads, running)
        return self._partners[number, heads.module]

    def refuse_halves(self, alive: Mapping[str, Partners]) -> None:
        """A conflict where later steps replace some parts of a module and leave others, which are `alive`."""
        told = {number for number, _ in self._partners if self._conflicts.of_step(number)}
        for name, partners in alive.items():
            gone = [other for other in partners.heads.parts.values() if other not in alive]
            number = next(number for (number, _), each in self._partners.items() if each is partners)
            if gone and number not in told:
                message = (
                    f"a later step replaces `{gone[0]}` and not `{name}`: {_TOGETHER}; let it build on the running "
                    f"tensor (`{RESULT}` names it in `models`), or edit all of them, or none"
                )
                self._add(number, "halves", name, message)

    @cached_property
    def _of_start(self) -> dict[str, Heads | str]:
        return find_heads(self._stacking.start)

    @cached_property
    def _by_part(self) -> dict[str, Heads]:
        return {name: heads for heads in _sound(self._of_start) for name in heads.parts.values()}

    def _refuse_strange(self, number: int, op: Op, names: Sequence[str]) -> None:
        """Matrices of attention that cannot be told to be without a part in the gauge are a conflict."""
        start = self._stacking.start
        apart: dict[str, list[str]] = defaultdict(list)  # by module, of those that are not known
        for name in names:
            if start.anatomy.group_of(name) != "attention" or len(start.tensors[name].shape) < 2:
                continue
            components = name.split(".")
            above = (".".join(components[:i]) for i in range(len(components) - 1, 0, -1))
            module = next((path for path in above if path in self._of_start), None)
            if module is None:
                apart[name.rsplit(".", 2)[0]].append(name)
            elif isinstance(reason := self._of_start[module], str):
                self._refuse(number, op, name, f"value and output projections of `{module}`", reason)
        for group in apart.values():
            name, reason = why_not_apart(group)
            self._refuse(number, op, name, f"the attention that `{name}` is part of", reason)

    def _refuse(self, number: int, op: Op, name: str, what: str, reason: str) -> None:
        self._add(number, reason, name, f"`{op.op}` cannot turn {what}: {reason}; leave it out with `exclude`")

    def _bind(
        self, number: int, op: Op, role: str, heads: Heads, running: Callable[[str], Source | None]
    ) -> Partners | None:
        sources: dict[Projection, tuple[Source, Source]] = {}
        for part, name in heads.parts.items():
            info, found = self._stacking.start.tensors[name], self._stacking.views[role].get(name)
            base = running(name)
            if base is None:
                self._add(
                    number,
                    "changed",
                    name,
                    f"an earlier step changes `{name}`, and `{op.op}` finds rotations from tensors as "
                    f"they are read; let it be the first step of attention",
                )
            elif not self._counterparts.between(number, role, info, found) and found is not None:
                sources[part] = base, Source(role, found)
        if len(sources) < len(heads.parts):
            return None
        sides = {source.role: source.info.name for source in sources["value"]}
        wrong = [self._unlike(number, heads, other, value) for other, value in sides.items()]
        return None if any(wrong) else Partners(heads, sources)

    def _unlike(self, number: int, heads: Heads, role: str, value: str) -> bool:
        """Whether a role's module, that of `value`, has other heads, or does not tell; that is a conflict."""
        module = value.rsplit(".", 2)[0]
        found = self._modules(role).get(module, "its output projection has another name")
        if isinstance(found, str):
            self._add(number, f"{role}: {found}", value, f"the heads of `{module}` of `{role}` are not known: {found}")
        elif not found.counted:
            self._add(
                number,
                f"{role}: count",
                value,
                f"the `config.json` of `{role}` ({self._inputs[role].source}) does not tell how many heads there are; "
                f"expected `num_attention_heads` and `num_key_value_heads`",
            )
        elif found.shape != heads.shape:
            message = f"`{module}` of `{role}` has {found}, where {heads} are edited; expected the same heads in both"
            self._add(number, f"{role}: heads", value, message)
        else:
            return False
        return True

    def _modules(self, role: str) -> dict[str, Heads | str]:
        if role not in self._found:
            self._found[role] = find_heads(self._inputs[role])
        return self._found[role]

    def _add(self, number: int, kind: str, name: str, message: str) -> None:
        self._conflicts.add(("steps", number), kind, name, message)


def _sound(found: Mapping[str, Heads | str]) -> Iterable[Heads]:
    return (heads for heads in found.values() if isinstance(heads, Heads))
