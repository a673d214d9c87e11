from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.anatomy import Anatomy, anatomy
from surgery.select import Select, resolve
from tests.conftest import llama_arrays, tensor_infos

TABLES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "architectures.json").read_text())
NAMES = list(llama_arrays(layers=4))
LLAMA = anatomy(tensor_infos({name: array.shape for name, array in llama_arrays(layers=4).items()}))


def of_table(name: str) -> tuple[Anatomy, list[str]]:
    shapes = TABLES[name]["tensors"]
    return anatomy(tensor_infos(shapes), tied="lm_head.weight" not in shapes), list(shapes)


def chosen(**select: Any) -> list[str]:
    return resolve(Select.model_validate(select), LLAMA, NAMES)


def matching(*globs: str) -> list[str]:
    return [name for name in NAMES if any(fnmatchcase(name, glob) for glob in globs)]


def refused(found: Anatomy = LLAMA, names: list[str] = NAMES, **select: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        resolve(Select.model_validate(select), found, names)
    return str(caught.value)


def test_nothing_said_is_everything() -> None:
    """`Select()` means every tensor, towers included, in the checkpoint's order."""
    assert chosen() == NAMES
    assert chosen(tensors=["all"]) == NAMES
    found, names = of_table("llava")
    assert resolve(Select(), found, names) == names


def test_groups() -> None:
    """Each group is what its words in the names say."""
    assert chosen(tensors=["attention"]) == matching("*.self_attn.*")
    assert chosen(tensors=["mlp"]) == matching("*.mlp.*")
    assert chosen(tensors=["norm"]) == matching("*norm*")
    assert chosen(tensors=["embedding"]) == ["model.embed_tokens.weight"]
    assert chosen(tensors=["lm_head"]) == ["lm_head.weight"]
    assert chosen(tensors=["mlp", "attention"]) == matching("*.mlp.*", "*.self_attn.*")
    assert chosen(tensors=["norm", "embedding", "lm_head", "mlp", "attention"]) == NAMES


def test_layers() -> None:
    """`layers` alone means all tensors of those layers and none outside; with `tensors`, the intersection."""
    assert chosen(layers="first 25%") == matching("model.layers.0.*")
    assert chosen(layers="last 2", tensors=["all"]) == matching("model.layers.2.*", "model.layers.3.*")
    assert chosen(layers=["0", "2-3"], tensors=["attention"]) == matching(
        "*.0.self_attn.*", "*.2.self_attn.*", "*.3.self_attn.*"
    )
    assert chosen(layers="all", tensors=["norm"]) == matching("*.layers.*norm*")
    assert chosen(layers=1, tensors=["*.q_proj.*", "*.*_layernorm.weight"], exclude=["*.input_*"]) == [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.post_attention_layernorm.weight",
    ]


def test_names_and_globs() -> None:
    """A name means itself; a glob is matched on the whole name, with case; both mix with groups."""
    name = "model.layers.2.mlp.up_proj.weight"
    assert chosen(tensors=[name]) == [name]
    assert chosen(tensors=["*.[13].mlp.up_proj.weight"]) == matching("*.1.mlp.up_proj.*", "*.3.mlp.up_proj.*")
    assert chosen(tensors=["lm_head", name, "*.norm.weight"]) == [name, "model.norm.weight", "lm_head.weight"]
    assert "matches no tensor" in refused(tensors=["*.MLP.*"])


def test_a_name_that_looks_like_a_glob() -> None:
    """A tensor whose name holds brackets can be named."""
    infos = tensor_infos({"a[0].weight": [2, 2], "a0.weight": [2, 2]})
    assert resolve(Select(tensors=("a[0].weight",)), anatomy(infos), infos) == ["a[0].weight"]


def test_exclude() -> None:
    """What is excluded is removed, whichever vocabulary says it."""
    assert chosen(exclude=["embedding", "lm_head", "norm"]) == matching("*.self_attn.*", "*.mlp.*")
    assert chosen(tensors=["attention"], exclude=["*.[kv]_proj.*"]) == matching("*.[qo]_proj.*")
    assert chosen(tensors=["attention"], exclude=["norm"]) == matching("*.self_attn.*")


@pytest.mark.parametrize(
    ("entry", "nearest"),
    [
        ("attenion", "`attention`"),
        ("atention", "`attention`"),
        ("mpl", "`mlp`"),
        ("norms", "`norm`"),
        ("embeddings", "`embedding`"),
        ("lmhead", "`lm_head`"),
        ("q_proj", "`*.q_proj.*`"),
        ("self_attn", "`*.self_attn.*`"),
        ("self_attn.q_proj", "`*.self_attn.q_proj.*`"),
        ("self_atn", "`*.self_attn.*`"),
        ("gate_prj", "`*.gate_proj.*`"),
        ("*.q_prj.weight", "`*.q_proj.weight`"),
        ("model.layers.3.mlp.upproj.weight", "`model.layers.3.mlp.up_proj.weight`"),
        ("model.layers.7.mlp.up_proj.weight", "up_proj.weight`"),
        ("model.embed_token.weight", "`model.embed_tokens.weight`"),
    ],
)
@pytest.mark.parametrize("key", ["tensors", "exclude"])
def test_entry_that_matches_nothing(key: str, entry: str, nearest: str) -> None:
    """The message names the entry and the nearest group, glob or name, which would have matched."""
    message = refused(LLAMA, NAMES, **{key: [entry]})
    assert message.startswith(f"`{entry}` matches no tensor")
    assert nearest in message
    suggestion = message.rsplit("`", 2)[1]
    assert chosen(tensors=[suggestion])


def test_entry_like_nothing() -> None:
    """Without a near match, the message says what there is."""
    message = refused(tensors=["zzzzzz"])
    assert "`attention`" in message
    assert NAMES[0] in message


def test_group_that_the_checkpoint_lacks() -> None:
    """The message says which groups it has."""
    found, names = of_table("mamba")
    message = refused(found, names, tensors=["attention"])
    assert "`attention` matches no tensor of `backbone.layers`" in message
    assert "`norm`, `embedding`" in message


def test_tied_head() -> None:
    """Whoever selects the head of a tied model is told where it is."""
    shapes = TABLES["llama_tied"]["tensors"]
    found = anatomy(tensor_infos(shapes), tied=True)
    message = refused(found, list(shapes), tensors=["lm_head"])
    assert "tied to `model.embed_tokens.weight`; select `embedding`" in message


def test_layers_out_of_range() -> None:
    """The message names the range that the stack has, and the stack."""
    message = refused(layers="2-9")
    assert "names layer 9" in message
    assert "0-3" in message
    assert "`model.layers`" in message


def test_empty_selections() -> None:
    """The message says which side is empty."""
    assert "`layers: first 0` selects no layer" in refused(layers="first 0")
    message = refused(layers="first 2", tensors=["lm_head"])
    assert "no tensor is both in `tensors: [lm_head]` (1 match)" in message
    assert "in `layers: first 2` (18 lie there)" in message
    assert "removes all 4 tensors" in refused(tensors=["*.q_proj.*"], exclude=["attention"])


VISION = "vision_tower.encoder.layers"


def test_towers_belong_to_no_group_unless_named() -> None:
    """Groups and layers mean the text decoder; `stack` moves them to another stack, and what stands beside it."""
    found, names = of_table("llava")

    def select(**how: Any) -> set[str]:
        return set(resolve(Select.model_validate(how), found, names))

    text = select(tensors=["attention", "mlp", "norm", "embedding", "lm_head"])
    assert text == {name for name in names if name.startswith("language_model.")}
    assert select(layers="all") < text
    vision = select(stack="vision_tower", tensors=["attention", "mlp", "norm", "embedding"])
    assert vision == {name for name in names if name.startswith("vision_tower.")} == select(stack=VISION)
    assert select(stack=VISION, layers="last 1") == {n for n in names if n.startswith(f"{VISION}.1.")}
    assert select(tensors=["vision_tower.*"]) == vision
    assert "`lm_head` matches no tensor" in refused(found, names, stack=VISION, tensors=["lm_head"])
    assert "matches no tensor" in refused(found, names, stack=VISION, tensors=["language_model.*"])


@pytest.mark.parametrize("stack", [VISION, "vision_tower", "vision", "encoder.layers", "vision*", "*.encoder.*"])
def test_stack_by_part_of_its_name(stack: str) -> None:
    """The whole prefix, or a beginning, an end or a glob that only one stack has."""
    found, names = of_table("llava")
    assert resolve(Select(stack=stack, layers=None), found, names) == resolve(Select(stack=VISION), found, names)


@pytest.mark.parametrize(
    ("stack", "message"),
    [("layers", "more than one"), ("*", "more than one"), ("vison_tower", "did you mean `vision_tower")],
)
def test_stack_that_is_unknown_or_ambiguous(stack: str, message: str) -> None:
    """The message lists the stacks with their depths."""
    found, names = of_table("llava")
    text = refused(found, names, stack=stack)
    assert message in text
    assert "`language_model.model.layers` (3 layers)" in text
    assert f"`{VISION}` (2 layers)" in text


def test_layers_without_a_decoder() -> None:
    """Where no text decoder is recognised, `layers` needs a stack, and the message lists them."""
    shapes = {n: s for n, s in TABLES["llava"]["tensors"].items() if n.startswith("vision_tower")}
    found = anatomy(tensor_infos(shapes))
    for how in ({"layers": "all"}, {"tensors": ["attention"]}):
        message = refused(found, list(shapes), **how)
        assert "no text decoder" in message
        assert VISION in message
    assert resolve(Select.model_validate({"layers": "all", "stack": VISION}), found, shapes)
    assert "none" in refused(anatomy({}), [], layers="all")


vocabulary = st.sampled_from(
    [
        "attention",
        "mlp",
        "norm",
        "embedding",
        "lm_head",
        "all",
        "*.q_proj.*",
        "model.norm.weight",
        "*.0.*",
        "nothing",
        "*",
    ]
)


@given(
    layers=st.sampled_from([None, "all", "first 25%", "last 1", "1-2", ["0", "3"]]),
    tensors=st.lists(vocabulary, max_size=3),
    exclude=st.lists(vocabulary, max_size=2),
)
def test_set_algebra(layers: Any, tensors: list[str], exclude: list[str]) -> None:
    """The result is layers AND union of tensors, less the union of excludes, in order; or an error when empty."""

    def everything(**select: Any) -> set[str]:
        return set(chosen(**select))

    try:
        parts = [everything(tensors=[entry]) for entry in tensors] or [set(NAMES)]
        expected = everything(layers=layers) & set().union(*parts)
        for entry in exclude:
            expected -= everything(tensors=[entry])
    except ValueError:
        expected = set()
    if expected:
        assert chosen(layers=layers, tensors=tensors, exclude=exclude) == [n for n in NAMES if n in expected]
    else:
        refused(layers=layers, tensors=tensors, exclude=exclude)
