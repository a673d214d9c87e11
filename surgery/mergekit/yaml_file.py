"""YAML as PyYAML reads it for mergekit, as far as files use it: values that are used again, merged maps, and tags."""

from __future__ import annotations

from collections.abc import Iterator

from ruamel.yaml.events import AliasEvent, Event, MappingStartEvent, NodeEvent, ScalarEvent, SequenceStartEvent

from surgery.source import Mistake, Path, Source
from surgery.wording import show
from surgery.yaml_source import Reader, read_yaml, resolve

_TAG = "tag:yaml.org,2002:"  # of the core schema
_TAGGED = {"str": str, "float": float, "int": int, "bool": bool, "null": type(None)}
_MERGE = "<<"


def read_again(read: Source) -> Source:
    """A document with what recipes of ours may not have: anchors, aliases, `<<` and tags such as `!!float`.

    Data from Python stays as it is. Raises RecipeError as `read_yaml` does.
    """
    return read_yaml(read.text, read.origin, _Reader(read.origin)) if read.lines else read


class _Reader(Reader):
    """Also takes anchors, aliases, merge keys, and the tags of the core schema."""

    def __init__(self, origin: str) -> None:
        super().__init__(origin)
        self.anchored: dict[str, tuple[object, int]] = {}  # the value of an anchor, and how many nodes it has

    def _check_properties(self, event: NodeEvent, path: Path) -> None:
        tag = str(getattr(event, "tag", None) or _TAG)
        kinds = ["seq"] if isinstance(event, SequenceStartEvent) else list(_TAGGED)
        kinds = ["map"] if isinstance(event, MappingStartEvent) else kinds
        if tag != _TAG and tag.removeprefix(_TAG) not in kinds:
            self._wrong(path, event, f"found the YAML tag {show(tag)}; expected a value without a tag")

    def _content(self, event: Event, events: Iterator[Event], path: Path) -> object:
        if isinstance(event, AliasEvent):
            return self._again(event, path)
        before = self.nodes
        value = super()._content(event, events, path)
        if isinstance(event, NodeEvent) and event.anchor is not None:
            self.anchored[event.anchor] = value, self.nodes - before
        return value

    def _again(self, event: AliasEvent, path: Path) -> object:
        """The value of an anchor; it counts as if it was written out, so that files stay small."""
        if event.anchor not in self.anchored:
            found = show(f"*{event.anchor}")
            self._wrong(path, event, f"found the YAML alias {found} of an anchor that is not above it, or not ended")
            return None
        value, nodes = self.anchored[event.anchor]
        self.nodes += nodes
        return value

    def _map(self, events: Iterator[Event], path: Path) -> dict[str, object]:
        items = super()._map(events, path)
        if _MERGE not in items:
            return items
        merged = items.pop(_MERGE) or {}
        added: dict[str, object] = {}
        for each in merged if isinstance(merged, list) else [merged]:
            if isinstance(each, dict):
                added = {**each, **added}  # the first counts
            else:
                message = f"found {show(each)}; expected a map, or a list of maps, to be merged"
                self.mistakes.append(Mistake((*path, _MERGE), message))
        return {**added, **items}

    def _resolved(self, event: ScalarEvent, text: str) -> object:
        read = _TAGGED.get(str(event.tag or "").removeprefix(_TAG))
        if read is None:
            return super()._resolved(event, text)
        value = resolve(text)
        if read is str:
            return text
        if read is float and type(value) is int:
            return float(value)
        if type(value) is not read:
            raise ValueError(f"found {show(text)}; expected what its tag says")
        return value
