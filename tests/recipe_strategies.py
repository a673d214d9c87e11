"""Recipes that load, as hypothesis strategies."""

from __future__ import annotations

from hypothesis import strategies as st


def counts_or_percents() -> st.SearchStrategy[object]:
    return st.integers(1, 10**6) | st.integers(1, 100).map(lambda p: f"{p}%") | st.just("all")


selects = st.fixed_dictionaries(
    {},
    optional={
        "layers": st.sampled_from(["all", "first 25%", "last 4", "0-9", 3, ["0-4", "20-27"]]),
        "tensors": st.lists(st.sampled_from(["attention", "mlp", "*.mlp.*"]), min_size=1, unique=True),
        "exclude": st.lists(st.just("*.bias"), max_size=1),
        "stack": st.just("vision_model"),
    },
)
two_models = st.fixed_dictionaries(
    {"op": st.sampled_from(["swap_directions", "restore_values"]), "from": st.just("base")},
    optional={"select": selects},
)
restores = st.fixed_dictionaries(
    {"op": st.just("restore_directions"), "from": st.just("base"), "head": counts_or_percents()},
    optional={
        "tail": counts_or_percents(),
        "singular_values": st.sampled_from(["start", "from"]),
        "orthogonalize": st.sampled_from(["none", "rotate", "polar"]),
        "select": selects,
    },
)
weights = st.floats(0.01, 10)
linears = st.fixed_dictionaries(
    {"op": st.just("linear"), "models": st.just(["base", "result"])},
    optional={
        "weights": st.tuples(weights, weights).map(list) | weights.map(lambda w: {"base": w, "result": 1.0}),
        "normalize": st.booleans(),
    },
)
ranges = st.sampled_from(["all", "first 75%", "last 4", "0-9", 3, ["0-4", "2-7", 7]])
slices = st.lists(st.fixed_dictionaries({"base": ranges, "sft": ranges}), min_size=1, max_size=3)
recipes = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
        "models": st.just(["base", "sft"]),
        "steps": st.lists(two_models | restores | linears, min_size=1, max_size=4),
    },
    optional={
        "summary": st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=40),
        "slices": slices,
        "start": st.just("sft"),
        "output": st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["keep", "bfloat16", "float16", "float32"]),
                "shard_size": st.sampled_from(["keep", "5GB", "1.5 GiB", "123456789B", "2TiB", 10**9]),
                "tokenizer": st.sampled_from(["base", "sft"]),
            },
        ),
    },
)
