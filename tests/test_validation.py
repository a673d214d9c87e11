"""Every kind of fault and its message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from surgery.errors import RecipeError
from surgery.recipe import load

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "name: x\nmodels: [base, sft]\nsteps:\n"
USE = "  - {op: restore_values, from: base}\n"
LAYERS = "`all`, `first 25%`, `last 4`, a range `0-9`, or a list of ranges `[0-4, 20-27]`"
QUANTITY = "expected a count such as `64`, a percentage from `0%` to `100%`, or `all`"
OPERATIONS = (
    "the operations are: `restore_directions`, `swap_directions`, `restore_values`, `reset_layers`, "
    "`truncate_rank`, `linear`"
)
DIRECTIONS = "  - {op: restore_directions, from: base, head: 20%"

FAULTS = {
    "unknown top-level key": (
        HEADER + USE + "ouput: {}\n",
        ["recipe.yaml:5 ouput: unknown key `ouput`; did you mean `output`?"],
    ),
    "unknown key of an operation": (
        HEADER + DIRECTIONS + ", tial: 3}\n",
        ["recipe.yaml:4 steps[0].tial: unknown key `tial`; did you mean `tail`?"],
    ),
    "far-off key": (
        HEADER + "  - {op: restore_values, from: base, zzz: 1}\n",
        ["recipe.yaml:4 steps[0].zzz: unknown key `zzz`; expected: `op`, `select`, `from`"],
    ),
    "the attribute's name is no key": (
        HEADER + "  - {op: restore_values, from_: base}\n",
        ["recipe.yaml:4 steps[0].from_: unknown key `from_`; did you mean `from`?"],
    ),
    "unknown key of select": (
        HEADER + "  - op: restore_values\n    from: base\n    select:\n      layer: all\n",
        ["recipe.yaml:7 steps[0].select.layer: unknown key `layer`; did you mean `layers`?"],
    ),
    "unknown key of output": (
        HEADER + USE + "output:\n  dtpye: keep\n",
        ["recipe.yaml:6 output.dtpye: unknown key `dtpye`; did you mean `dtype`?"],
    ),
    "unknown operation": (
        HEADER + USE + "  - {op: swap_direction, from: base}\n",
        ["recipe.yaml:5 steps[1]: unknown operation `swap_direction`; did you mean `swap_directions`?"],
    ),
    "far-off operation": (
        HEADER + USE + "  - {op: ties}\n",
        [f"recipe.yaml:5 steps[1]: unknown operation `ties`; {OPERATIONS}"],
    ),
    "operation missing": (
        HEADER + USE + "  - {from: base}\n",
        [f"recipe.yaml:5 steps[1]: `op` is missing; {OPERATIONS}"],
    ),
    "step is no map": (HEADER + USE + "  - 5\n", ["recipe.yaml:5 steps[1]: found `5`; expected a map"]),
    "unknown role": (
        HEADER + USE + "  - {op: restore_values, from: bsae}\n",
        ["recipe.yaml:5 steps[1].from: `bsae` is not among the recipe's models: base, sft; did you mean `base`?"],
    ),
    "unknown role in a list": (
        HEADER + USE + "  - op: linear\n    models:\n      - base\n      - sftt\n",
        ["recipe.yaml:8 steps[1].models[1]: `sftt` is not among the recipe's models: base, sft; did you mean `sft`?"],
    ),
    "unknown start": (
        HEADER + USE + "start: stf\n",
        ["recipe.yaml:5 start: `stf` is not among the recipe's models: `base`, `sft`; did you mean `sft`?"],
    ),
    "start is the result": (
        HEADER + USE + "start: result\n",
        ["recipe.yaml:5 start: `result` is not among the recipe's models: `base`, `sft`"],
    ),
    "unknown tokenizer": (
        HEADER + USE + "output: {tokenizer: bas}\n",
        ["recipe.yaml:5 output.tokenizer: `bas` is not among the recipe's models: `base`, `sft`; did you mean `base`?"],
    ),
    "reserved role": (
        "name: x\nmodels: [base, result]\nsteps:\n" + USE,
        ["recipe.yaml:2 models[1]: `result` is reserved for the tensor being edited; expected another name"],
    ),
    "role's name": (
        "name: x\nmodels: [base, 1st]\nsteps:\n" + USE,
        [
            (
                "recipe.yaml:2 models[1]: found `1st`; expected a role's name of letters, digits, `_` and `-`, not "
                "starting with a digit or `-`"
            )
        ],
    ),
    "repeated roles": (
        "name: x\nmodels: [base, sft, base]\nsteps:\n" + USE,
        [
            "recipe.yaml:2 models: found `base` more than once; every role needs its own name",
        ],
    ),
    "unused role": (
        "name: x\nmodels:\n  - base\n  - spare\n  - sft\nsteps:\n" + USE,
        ["recipe.yaml:4 models[1]: no step reads `spare`, and it is not `start`; use it or remove it"],
    ),
    "no roles": (
        "name: x\nmodels: []\nsteps:\n" + USE,
        ["recipe.yaml:2 models: found an empty list; expected at least 1"],
    ),
    "models is text": (
        "name: x\nmodels: base\nsteps:\n" + USE,
        ["recipe.yaml:2 models: found `base`; expected a list: `[base]`"],
    ),
    "no steps": (
        "name: x\nmodels: [sft]\nsteps: []\n",
        ["recipe.yaml:3 steps: found an empty list; expected at least 1"],
    ),
    "no slices": (
        "name: x\nmodels: [sft]\nslices: []\n",
        ["recipe.yaml:3 slices: found an empty list; expected at least 1"],
    ),
    "slices are missing after all": (
        "name: x\nmodels: [sft]\nslices:\nsteps: []\n",
        ["recipe.yaml:3 slices: found nothing; expected a list"],
    ),
    "slices are a map": (
        "name: x\nmodels: [sft]\nslices: {sft: 0-3}\n",
        ["recipe.yaml:3 slices: found a map; expected a list"],
    ),
    "a slice is no map": (
        "name: x\nmodels: [sft]\nslices:\n  - 0-3\n",
        ["recipe.yaml:4 slices[0]: found `0-3`; expected a map"],
    ),
    "a slice without a role": (
        "name: x\nmodels: [sft]\nslices:\n  - {sft: 1}\n  - {}\n",
        ["recipe.yaml:5 slices[1]: found an empty map; expected at least 1"],
    ),
    "a slice's role": (
        "name: x\nmodels: [base, sft]\nslices:\n  - {base: 0-3}\n  - {stf: 2-4}\n",
        ["recipe.yaml:5 slices[1].stf: `stf` is not among the recipe's models: `base`, `sft`; did you mean `sft`?"],
    ),
    "a slice's layers": (
        "name: x\nmodels: [base, sft]\nslices:\n  - {base: 3-0,\n     sft: some}\n",
        [
            "recipe.yaml:4 slices[0].base: found the range `3-0`, which runs backwards; write `0-3`",
            f"recipe.yaml:5 slices[0].sft: found `some`; expected {LAYERS}",
        ],
    ),
    "a role that no slice names": (
        "name: x\nmodels: [base, spare, sft]\nslices:\n  - {base: 0-3, sft: 0-3}\nsteps: []\n",
        [
            (
                "recipe.yaml:2 models[1]: no slice names `spare`, no step reads it, and it is not `start`; use it or "
                "remove it"
            ),
        ],
    ),
    "a parameter in a slice": (
        "name: x\nmodels: [sft]\nparameters: {part: much}\nslices:\n  - {sft: $part}\n  - {sft: $prat}\n",
        [
            f"recipe.yaml:5 slices[0].sft: found `much`; expected {LAYERS} (from parameter `part`)",
            "recipe.yaml:6 slices[1].sft: unknown parameter `$prat`; did you mean `$part`?",
        ],
    ),
    "steps is a map": (
        "name: x\nmodels: [base, sft]\nsteps:\n  op: restore_values\n  from: base\n",
        ["recipe.yaml:3 steps: found a map; expected a list"],
    ),
    "missing keys": (
        "summary: x\n",
        [
            "recipe.yaml:1: `name` is missing; expected the recipe's name, one word",
            (
                "recipe.yaml:1: `models` is missing; expected roles; the checkpoints on the command line are bound "
                "to them in this order"
            ),
            "recipe.yaml:1: `steps` is missing; expected what to do, in order, on each tensor",
        ],
    ),
    "missing parameter of an operation": (
        HEADER + USE + "  - {op: restore_directions, from: base}\n",
        [
            (
                "recipe.yaml:5 steps[1]: `head` is missing; `restore_directions` needs it; expected how many leading "
                "directions are restored: a count, a percentage of min(rows, cols), or `all`"
            )
        ],
    ),
    "name of several words": (
        "name: my recipe\nmodels: [base, sft]\nsteps:\n" + USE,
        ["recipe.yaml:1 name: found `my recipe`; expected one word of letters, digits, `_`, `.` and `-`"],
    ),
    "name is a number": (
        "name: 5\nmodels: [base, sft]\nsteps:\n" + USE,
        ["recipe.yaml:1 name: found `5`; expected text"],
    ),
    "near miss of a choice": (
        HEADER + DIRECTIONS + ", orthogonalize: rotat}\n",
        [
            (
                "recipe.yaml:4 steps[0].orthogonalize: found `rotat`; expected `none`, `rotate`, `polar`; did you "
                "mean `rotate`?"
            )
        ],
    ),
    "output's dtype": (
        HEADER + USE + "output: {dtype: int8}\n",
        ["recipe.yaml:5 output.dtype: found `int8`; expected `keep`, `bfloat16`, `float16`, `float32`"],
    ),
    "output's shard size": (
        HEADER + USE + "output: {shard_size: 0GB}\n",
        ["recipe.yaml:5 output.shard_size: found `0GB`; expected `keep` or a size such as `5GB` or `500MiB`"],
    ),
    "quantity": (
        HEADER + "  - {op: restore_directions, from: base, head: 120%}\n",
        [f"recipe.yaml:4 steps[0].head: found `120%`; {QUANTITY}"],
    ),
    "fraction instead of a percentage": (
        HEADER + "  - {op: restore_directions, from: base, head: 0.2}\n",
        [f"recipe.yaml:4 steps[0].head: found `0.2`; {QUANTITY}"],
    ),
    "layers": (
        HEADER + "  - {op: restore_values, from: base, select: {layers: 9-0}}\n",
        ["recipe.yaml:4 steps[0].select.layers: found the range `9-0`, which runs backwards; write `0-9`"],
    ),
    "one glob without a list": (
        HEADER + "  - {op: restore_values, from: base, select: {tensors: mlp}}\n",
        ["recipe.yaml:4 steps[0].select.tensors: found `mlp`; expected a list: `[mlp]`"],
    ),
    "boolean of YAML 1.1": (
        HEADER + "  - {op: linear, models: [base, sft], normalize: yes}\n",
        ["recipe.yaml:4 steps[0].normalize: found the text `yes`; expected `true` or `false`"],
    ),
    "number instead of a boolean": (
        HEADER + "  - {op: linear, models: [base, sft], normalize: 1}\n",
        ["recipe.yaml:4 steps[0].normalize: found `1`; expected `true` or `false`"],
    ),
    "infinite weight": (
        HEADER + "  - {op: linear, models: [base, sft], weights: [1e309, .nan]}\n",
        [
            "recipe.yaml:4 steps[0].weights[0]: found `1e309`; expected a finite number",
            "recipe.yaml:4 steps[0].weights[1]: found `.nan`; expected a finite number",
        ],
    ),
    "number of weights": (
        HEADER + "  - {op: linear, models: [base, sft], weights: [1]}\n",
        ["recipe.yaml:4 steps[0].weights: found 1 weights for 2 models; expected one weight a model"],
    ),
    "duplicate key": (
        HEADER + "  - op: restore_values\n    from: base\n    from: sft\n",
        ["recipe.yaml:6 steps[0].from: `from` is already set on line 5 and again on line 6; keep one"],
    ),
    "merge key": (
        HEADER + "  - {op: restore_values, from: base, <<: {select: {}}}\n",
        ["recipe.yaml:4 steps[0].<<: unknown key `<<`; expected: `op`, `select`, `from`"],
    ),
    "empty": ("", ["recipe.yaml:1: the recipe is empty; expected a map with the keys `name`, `models` and `steps`"]),
    "only comments": (
        "# nothing\n",
        ["recipe.yaml:1: the recipe is empty; expected a map with the keys `name`, `models` and `steps`"],
    ),
    "a list": (
        "- op: linear\n",
        ["recipe.yaml:1: found a list; expected a map with the keys `name`, `models` and `steps`"],
    ),
    "a scalar": (
        "restore-top-20pct\n",
        ["recipe.yaml:1: found `restore-top-20pct`; expected a map with the keys `name`, `models` and `steps`"],
    ),
    "two documents": (
        HEADER + USE + "---\nname: y\n",
        ["recipe.yaml:5: a second document starts here; expected one"],
    ),
    "a second document hides nothing": (
        HEADER + USE + "x: 1\n---\n",
        [
            (
                "recipe.yaml:5 x: unknown key `x`; expected: `name`, `summary`, `models`, `slices`, `start`, "
                "`parameters`, `steps`, `output`"
            ),
            "recipe.yaml:6: a second document starts here; expected one",
        ],
    ),
    "a directive hides nothing": (
        "%YAML 1.1\n---\n" + HEADER + USE + "ouput: {}\n",
        [
            "recipe.yaml:2: found a `%YAML` directive of another version; expected YAML 1.2",
            "recipe.yaml:7 ouput: unknown key `ouput`; did you mean `output`?",
        ],
    ),
    "a repeated key hides nothing": (
        HEADER + "  - op: restore_values\n    from: bsae\n    from: sft\n",
        [
            "recipe.yaml:5 steps[0].from: `bsae` is not among the recipe's models: base, sft; did you mean `base`?",
            "recipe.yaml:6 steps[0].from: `from` is already set on line 5 and again on line 6; keep one",
        ],
    ),
    "a key named as the operation": (
        HEADER + "  - op: linear\n    linear: {models: 5}\n    models: base\n",
        [
            (
                "recipe.yaml:5 steps[0].linear: unknown key `linear`; expected: `op`, `select`, `models`, `weights`, "
                "`normalize`"
            ),
            "recipe.yaml:6 steps[0].models: found `base`; expected a list: `[base]`",
        ],
    ),
    "syntax": (
        HEADER + "  - {op: linear\n",
        [
            (
                "recipe.yaml:5: not valid YAML at column 1: while parsing a flow mapping expected ',' or '}', but "
                "got '<stream end>'; a bracket or a quote is not closed"
            )
        ],
    ),
    "unknown parameter": (
        (
            "name: x\nmodels: [base, sft]\nparameters: {head: 20%}\nsteps:\n"
            "  - {op: restore_directions, from: base, head: $hed}\n"
        ),
        ["recipe.yaml:5 steps[0].head: unknown parameter `$hed`; did you mean `$head`?"],
    ),
    "parameter without declaration": (
        HEADER + "  - {op: restore_directions, from: base, head: $head}\n",
        ["recipe.yaml:4 steps[0].head: unknown parameter `$head`; there are no parameters"],
    ),
    "unused parameter": (
        "name: x\nmodels: [base, sft]\nparameters:\n  head: 20%\nsteps:\n" + USE,
        ["recipe.yaml:4 parameters.head: nothing uses this parameter; write `$head` where it belongs, or remove it"],
    ),
    "parameter in text": (
        (
            "name: x\nmodels: [base, sft]\nparameters: {k: 4}\nsteps:\n"
            "  - {op: restore_values, from: base, select: {layers: first $k}}\n"
        ),
        [
            (
                "recipe.yaml:5 steps[0].select.layers: found `first $k`; expected `$k` alone: put the whole value "
                "into the parameter"
            )
        ],
    ),
    "parameter of a parameter": (
        (
            "name: x\nmodels: [base, sft]\nparameters: {a: 4, b: $a}\nsteps:\n"
            "  - {op: restore_directions, from: base, head: $a, tail: $b}\n"
        ),
        ["recipe.yaml:3 parameters.b: found `$a`; a parameter's value cannot refer to another parameter"],
    ),
    "wrong value of a parameter": (
        (
            "name: x\nmodels: [base, sft]\nparameters: {head: much}\nsteps:\n"
            "  - {op: restore_directions, from: base, head: $head}\n"
        ),
        [f"recipe.yaml:5 steps[0].head: found `much`; {QUANTITY} (from parameter `head`)"],
    ),
    "parameter that is no number": (
        (
            "name: x\nmodels: [base, sft]\nparameters: {w: .nan}\nsteps:\n"
            "  - {op: linear, models: [base, sft], weights: [$w, rest]}\n"
        ),
        ["recipe.yaml:3 parameters.w: found `.nan`; expected a finite number"],
    ),
    "parameter's name": (
        "name: x\nmodels: [base, sft]\nparameters: {1a: 2}\nsteps:\n" + USE,
        [
            (
                "recipe.yaml:3 parameters.1a: found the parameter `1a`; expected a name of letters, digits, `_` "
                "and `-`, not starting with a digit or `-`"
            )
        ],
    ),
    "parameters is a list": (
        "name: x\nmodels: [base, sft]\nparameters: [a]\nsteps:\n" + USE,
        ["recipe.yaml:3 parameters: found a list; expected a map"],
    ),
    "operation as a parameter": (
        "name: x\nmodels: [base, sft]\nsteps:\n  - {op: $op, from: base}\n",
        [f"recipe.yaml:4 steps[0]: unknown operation `$op`; {OPERATIONS}"],
    ),
}


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function from a recipe's text to the messages that it gets."""
    monkeypatch.chdir(tmp_path)

    def messages(text: str) -> list[str]:
        (tmp_path / "recipe.yaml").write_text(text, "utf-8")
        with pytest.raises(RecipeError) as caught:
            load("recipe.yaml")
        return [str(fault) for fault in caught.value.faults]

    return messages


@pytest.mark.parametrize("case", FAULTS)
def test_faults(case: str, faults: Any) -> None:
    """Each kind of fault gets this message, and only it."""
    text, expected = FAULTS[case]
    assert faults(text) == expected


def test_all_faults_at_once(faults: Any) -> None:
    """Faults of YAML, of structure and of meaning are reported together, by line, each once."""
    text = """\
nmae: x
models: [base, sft, rl]
start: sft
parameters: {head: 20%, spare: 1}
steps:
  - op: restore_directions
    from: bsae
    head: $haed
    tail: yes
    tail: 2
  - op: reset_layer
    from: base
  - op: linear
    models: [base, sft]
    weights: [.nan, 0.5]
    normalize: yes
output: {dtype: bf16}
"""
    assert faults(text) == [
        "recipe.yaml:1 nmae: unknown key `nmae`; did you mean `name`?",
        "recipe.yaml:2 models[2]: no step reads `rl`, and it is not `start`; use it or remove it",
        "recipe.yaml:4 parameters.spare: nothing uses this parameter; write `$spare` where it belongs, or remove it",
        "recipe.yaml:7 steps[0].from: `bsae` is not among the recipe's models: base, sft, rl; did you mean `base`?",
        "recipe.yaml:8 steps[0].head: unknown parameter `$haed`; did you mean `$head`?",
        f"recipe.yaml:9 steps[0].tail: found `yes`; {QUANTITY}",
        "recipe.yaml:10 steps[0].tail: `tail` is already set on line 9 and again on line 10; keep one",
        "recipe.yaml:11 steps[1]: unknown operation `reset_layer`; did you mean `reset_layers`?",
        "recipe.yaml:15 steps[2].weights[0]: found `.nan`; expected a finite number",
        "recipe.yaml:16 steps[2].normalize: found the text `yes`; expected `true` or `false`",
        (
            "recipe.yaml:17 output.dtype: found `bf16`; expected `keep`, `bfloat16`, `float16`, `float32`; did "
            "you mean `bfloat16`?"
        ),
    ]


def test_a_fault_beside_one_in_the_same_step(faults: Any) -> None:
    """A value that means nothing hides what follows from it, not what else is wrong with its step."""
    text = HEADER + USE + "  - {op: restore_direction, from: $b}\n  - {op: restore_directions, head: .nan}\n"
    assert faults(text) == [
        "recipe.yaml:5 steps[1].from: unknown parameter `$b`; there are no parameters",
        "recipe.yaml:5 steps[1]: unknown operation `restore_direction`; did you mean `restore_directions`?",
        "recipe.yaml:6 steps[2].head: found `.nan`; expected a finite number",
        (
            "recipe.yaml:6 steps[2]: `from` is missing; `restore_directions` needs it; expected the role of the other "
            "model"
        ),
    ]


@pytest.mark.parametrize("step", ["{op: restore_values}", "{op: restore_values, from: $b}", "5", "{from: x}"])
def test_what_a_wrong_step_reads_is_unknown(step: str, faults: Any) -> None:
    """As long as a step does not show which role it reads, none is called unused."""
    assert not any("no step reads" in message for message in faults(HEADER + f"  - {step}\n"))
