"""Makes the plan: a pure function of recipe and headers that finds every conflict before a byte is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from surgery.attentions import Attentions
from surgery.blocks import spell
from surgery.chat_template import REPLACED, chosen_template, template_files
from surgery.checkpoint import Checkpoint
from surgery.companions import companions
from surgery.conflicts import Conflicts
from surgery.counterparts import Counterparts
from surgery.dtypes import OUTPUT_DTYPES, DType
from surgery.header import TensorInfo, listed
from surgery.layout import Entry, lay_out
from surgery.ops.base import RESULT, Op
from surgery.partners import Partners
from surgery.plan import Plan, Source, TensorPlan
from surgery.recipe import Recipe
from surgery.select import Select, resolve
from surgery.stacking import stack
from surgery.token_positions import TokenPositions
from surgery.token_rows import TokenRows
from surgery.vocabulary import check_tokenizer

_NEEDS = {  # by the kind of an operation
    "elementwise": "floating-point tensors",
    "rows": "floating-point tensors",
    "matrix": "floating-point matrices",
    "heads": "value and output projections of attention",
}


def make_plan(recipe: Recipe, inputs: Mapping[str, Checkpoint]) -> Plan:
    """Plan what `recipe` does to `inputs`, a checkpoint for each of its roles.

    Reads nothing but the headers that the checkpoints were opened with, the files beside the weights, and tokenizers
    where rows of embedding or head are read from several models. Raises PlanError with every conflict: selectors that
    match nothing, missing tensors, shapes, dtypes, vocabularies, tied heads, layer counts.
    """
    return _Planner(recipe, inputs).plan()


@dataclass
class _Draft:
    """A tensor's way so far: the running tensor's origin, and the steps since."""

    base: Source
    copied: int | None = None  # the step that made `base` what it is
    steps: list[int] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    partners: Partners | None = None  # of the first step

    def add(self, number: int, op: Op, sources: Sequence[Source], partners: Partners | None) -> None:
        self.sources.update((source.role, source) for source in sources)
        if op.copies:
            self.base, self.copied, self.steps, self.partners = sources[0], number, [], None
        elif op.uses_result:
            self.steps.append(number)
            self.partners = partners or self.partners
        else:
            self.copied, self.steps, self.partners = None, [number], None


class _Planner:
    def __init__(self, recipe: Recipe, inputs: Mapping[str, Checkpoint]) -> None:
        self.recipe = recipe
        self.inputs = inputs
        self.conflicts = Conflicts(recipe)
        self.stacking = stack(recipe, inputs, self.conflicts)
        self.positions = TokenPositions(recipe, inputs)
        self.rows = TokenRows(recipe, inputs, self.stacking, self.conflicts)
        self.stacking = self.rows.stacking
        self.files = dict(self.rows.files)  # beside the weights, in place of those of the inputs
        self.start = self.stacking.start
        self.anatomy = self.start.anatomy
        self.counterparts = Counterparts(inputs, self.rows, self.positions, recipe, self.conflicts)
        self.attentions = Attentions(inputs, self.stacking, self.counterparts, self.conflicts)
        self.remarks: dict[str, list[str]] = {}
        self.ops: dict[tuple[int, str], Op] = {}  # by step and tensor, with the numbers for that tensor

    def plan(self) -> Plan:
        drafts = {name: _Draft(source) for name, source in self.stacking.origins.items()}
        for number, op in enumerate(self.recipe.steps):
            names = self._selected(number, op)
            for name, resolved in self._resolved(number, op, names).items():
                self.ops[number, name] = resolved
                self._extend(drafts, number, resolved, self.start.tensors[name])
        self._refuse_dead_steps(drafts)
        self.attentions.refuse_halves({name: draft.partners for name, draft in drafts.items() if draft.partners})
        self.positions.check_lender(self.recipe.output.tokenizer or self.recipe.start, self.conflicts)
        self._remark_what_is_left_out()
        self._choose_chat_template()
        self.conflicts.raise_all()
        return self._finish(drafts)

    def _selected(self, number: int, op: Op) -> list[str]:
        """The tensors that a step edits: what it selects, less what its operation does not apply to."""
        try:
            names = resolve(self._scope(op), self.anatomy, list(self.start.tensors))
        except ValueError as error:
            self.conflicts.step(number, f"select: {error}")
            return []
        names = self._with_tied_twin(names)
        if op.kind == "copy":
            return names
        edited = [name for name in names if self._applies(number, op, self.start.tensors[name])]
        if op.kind == "heads":
            edited = self.attentions.select(number, op, edited)
        if not edited and not self.conflicts.of_step(number):
            self.conflicts.step(
                number,
                f"`{op.op}` applies to none of the {len(names)} selected tensors: it needs {_NEEDS[op.kind]}, "
                f"`{names[0]}` is {_describe(self.start.tensors[names[0]])}; select others",
            )
        return edited

    def _resolved(self, number: int, op: Op, names: Sequence[str]) -> dict[str, Op]:
        """The operation for each of these tensors, with that tensor's numbers."""
        if not names:  # a conflict that is told already
            return {}
        try:
            tables = {graded: graded.table(self.anatomy, list(self.start.tensors)) for graded in op.graded}
        except ValueError as error:
            self.conflicts.step(number, f"a rule: {error}")
            return {}
        for text in (text for graded in op.graded for text in graded.idle(self.anatomy, self.start.tensors)):
            self._remark(f"steps[{number}]: a rule for `{text}` selects no tensor; the next one counts for", names[0])
        found = {}
        for name in names:
            known = self._known_as(name)
            if any(known not in table for table in tables.values()):
                self.conflicts.step(
                    number, f"no rule gives `{name}` a value; let the last rule be for all others: `{{value: ...}}`"
                )
                break
            try:
                found[name] = op.at({graded: table[known] for graded, table in tables.items()})
            except ValueError as error:
                self.conflicts.step(number, f"for `{name}`: {error}")
                break
        return found

    def _scope(self, op: Op) -> Select:
        """What a step selects; of a natural scope, which the user did not write, the groups that the model has."""
        if op.select is not None:
            return op.select
        present = {self.anatomy.group_of(name) for name in self.start.tensors}
        groups = tuple(group for group in op.natural.tensors if group in present)
        return op.natural.model_copy(update={"tensors": groups or op.natural.tensors})

    def _known_as(self, name: str) -> str:
        """Whose numbers and random choices a tensor gets: of a tied head that is stored, the embedding's."""
        twin = self.anatomy.embedding
        tied = self.start.tied and name == self.anatomy.head and twin in self.start.tensors
        return twin if tied and twin is not None else name

    def _with_tied_twin(self, names: list[str]) -> list[str]:
        """A tied head that is stored all the same is edited together with the embedding that it must equal."""
        pair = {self.anatomy.embedding, self.anatomy.head}
        chosen = set(names)
        if not self.start.tied or None in pair or not (pair & chosen):
            return names
        return [name for name in self.start.tensors if name in chosen or name in pair]

    def _applies(self, number: int, op: Op, info: TensorInfo) -> bool:
        if not info.dtype.arithmetic:
            origin = self.stacking.origins[info.name]
            if not self.counterparts.quantised(number, origin.role, origin.info):
                self._remark(f"steps[{number}] leaves {info.dtype.name} tensors as they are", info.name)
            return False
        return op.kind != "matrix" or _is_matrix(info)

    def _extend(self, drafts: Mapping[str, _Draft], number: int, op: Op, info: TensorInfo) -> None:
        def running(name: str) -> Source | None:
            return None if any(step < number for step in drafts[name].steps) else drafts[name].base

        sources = [source for role in op.sources if (source := self._source(number, role, info))]
        partners = self.attentions.partners(number, op, info.name, running) if op.kind == "heads" else None
        if len(sources) < len(op.sources) or (op.kind == "heads" and partners is None):
            return
        drafts[info.name].add(number, op, sources, partners)
        if op.kind == "matrix":
            rows, columns = info.shape[-2:]
            remark = op.remark((rows, columns))
            if remark:
                self._remark(f"steps[{number}] {remark}", info.name)

    def _remark(self, text: str, name: str) -> None:
        self.remarks.setdefault(text, []).append(name)

    def _remark_what_is_left_out(self) -> None:
        """Tensors that only another role has: they are read by nothing and go nowhere."""
        whole = "the output" if self.stacking.blocks else f"`{self.recipe.start}`"
        for role, view in self.stacking.views.items():
            for name in view:
                if name not in self.start.tensors:
                    self._remark(f"`{role}` has tensors that {whole} lacks; they are left out", name)

    def _source(self, number: int, role: str, info: TensorInfo) -> Source | None:
        """The tensor of another role that belongs to `info`, or None and a conflict."""
        checkpoint = self.inputs[role]
        found = self.stacking.views[role].get(info.name)
        if found is None and checkpoint.tied and info.name == self.anatomy.head:
            found = checkpoint.tensors.get(checkpoint.anatomy.embedding or "")  # a tied head that is not stored
        if self.counterparts.between(number, role, info, found):
            return None
        assert found is not None
        return self.rows.source(number, role, info.name, found)

    def _choose_chat_template(self) -> None:
        """Put the chat template that the recipe asks for into the files beside the weights."""
        asked = self.recipe.output.chat_template
        if asked is None:
            return
        lender = self.inputs[self.recipe.output.tokenizer or self.recipe.start]
        try:
            check_tokenizer(lender)
            self.files.update(template_files(chosen_template(asked, self.inputs), lender, self.files))
        except ValueError as error:
            self.conflicts.output("chat_template", str(error))

    def _refuse_dead_steps(self, drafts: Mapping[str, _Draft]) -> None:
        alive = {number for draft in drafts.values() for number in (*draft.steps, draft.copied)}
        for number, op in enumerate(self.recipe.steps):
            if number not in alive and not self.conflicts.of_step(number):
                self.conflicts.step(
                    number,
                    f"`{op.op}` has no effect: later steps replace every tensor that it edits; let them build on it "
                    f"(`{RESULT}` names the running tensor in `models`), or narrow a `select`",
                )

    def _finish(self, drafts: Mapping[str, _Draft]) -> Plan:
        chosen = OUTPUT_DTYPES.get(self.recipe.output.dtype)  # None: keep
        entries = [
            Entry(name, _output_dtype(info, chosen), info.shape, info.file) for name, info in self.start.tensors.items()
        ]
        layout = lay_out(entries, self.start, self.recipe.output.shard_size or self.stacking.shard_bytes)
        tokenizer = self.inputs[self.recipe.output.tokenizer or self.recipe.start]
        return Plan(
            recipe=self.recipe,
            inputs=self.inputs,
            tensors=tuple(self._tensor(draft, layout.slots[name]) for name, draft in drafts.items()),
            files=layout.files,
            index=layout.index,
            index_name=layout.index_name,
            companions=companions(
                self.start,
                tokenizer,
                self.recipe.output.dtype if chosen else None,
                changed=self.start.config is not self.inputs[self.recipe.start].config,
                made=self.files,
                replaced=() if self.recipe.output.chat_template is None else REPLACED,
            ),
            remarks=(
                *self._notes(),
                *self.stacking.remarks,
                *self.rows.remarks,
                *self.positions.remarks,
                *(f"{text}: {listed(names)}" for text, names in self.remarks.items()),
            ),
            layers=tuple((spell(block.outcome), str(block)) for block in self.stacking.blocks),
            tokenizer=_digest(self.files),
        )

    def _notes(self) -> list[str]:
        """What there is to know of the models, whatever the recipe."""
        notes = dict.fromkeys(note for checkpoint in self.inputs.values() for note in checkpoint.notes)
        start = self.inputs[self.recipe.start]
        if start.is_directory and not start.config:
            notes[f"`{start.source}` has no config.json, so the output has none: no program loads it without"] = None
        return list(notes)

    def _tensor(self, draft: _Draft, slot: TensorInfo) -> TensorPlan:
        ops = [self.ops[number, slot.name] for number in draft.steps]
        roles = dict.fromkeys(role for op in ops for role in op.sources)
        return TensorPlan(
            slot=slot,
            base=draft.base if not ops or ops[0].uses_result else None,
            steps=tuple(draft.steps),
            ops=tuple(ops),
            sources=tuple(draft.sources[role] for role in roles),
            known_as=self._known_as(slot.name),
            partners=draft.partners,
        )


def _digest(files: Mapping[str, bytes]) -> str:
    """Of the files that are made; empty where there are none."""
    return hashlib.blake2b(repr(sorted(files.items())).encode(), digest_size=16).hexdigest() if files else ""


def _is_matrix(info: TensorInfo) -> bool:
    """Whether spectral operations apply: a matrix, or a 3-D stack of them.

    Neither a convolution over one channel nor the biases of stacked experts are matrices.
    """
    return (
        not info.name.endswith("bias")
        and info.elements > 0
        and (len(info.shape) == 2 or (len(info.shape) == 3 and min(info.shape[1:]) > 1))
    )


def _output_dtype(info: TensorInfo, chosen: DType | None) -> DType:
    return chosen if chosen is not None and info.dtype.arithmetic else info.dtype


def _describe(info: TensorInfo) -> str:
    return f"{info.dtype.name} {list(info.shape)}"
