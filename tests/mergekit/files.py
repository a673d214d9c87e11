"""Recipe files of the kinds that people share, written after mergekit's documentation, and what they become.

The models are `MODELS/base` and so on: tests that run them put directories there.
"""

from __future__ import annotations

from typing import Any

LINEAR = """\
models:
  - model: MODELS/sft
    parameters:
      weight: 0.75
  - model: MODELS/math
    parameters:
      weight: 0.5
merge_method: linear
dtype: float16
"""
SLERP = """\
slices:
  - sources:
      - model: MODELS/base
        layer_range: [0, 4]
      - model: MODELS/sft
        layer_range: [0, 4]
merge_method: slerp
base_model: MODELS/base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5  # fallback for rest of tensors
dtype: bfloat16
"""
SLERP_OF_MODELS = """\
models:
  - model: MODELS/sft
  - model: MODELS/base
merge_method: slerp
base_model: MODELS/base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5  # fallback for rest of tensors
dtype: float32
"""
TIES = """\
models:
  - model: MODELS/sft
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: MODELS/math
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: MODELS/code
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: MODELS/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""
DARE_TIES = """\
models:
  - model: MODELS/base
    # no parameters necessary for base model
  - model: MODELS/sft
    parameters:
      density: 0.53
      weight: 0.4
  - model: MODELS/math
    parameters:
      density: 0.6
      weight: 0.3
merge_method: dare_ties
base_model: MODELS/base
parameters:
  int8_mask: true
dtype: bfloat16
tokenizer_source: base
"""
TASK_ARITHMETIC = """\
base_model: MODELS/base
merge_method: task_arithmetic
dtype: float32
out_dtype: bfloat16
parameters:
  weight: 0.4
  lambda: 1.1
models:
  - model: MODELS/sft
  - model: MODELS/math
    parameters: {weight: -0.2}
"""
MODEL_STOCK = """\
models:
  - model: MODELS/sft
  - model: MODELS/math
  - model: MODELS/code
merge_method: model_stock
base_model: MODELS/base
parameters:
  filter_wise: true
tokenizer:
  source: base
"""
FRANKENMERGE = """\
slices:
  - sources:
      - model: MODELS/base
        layer_range: [0, 3]
  - sources:
      - model: MODELS/sft
        layer_range: [1, 4]
merge_method: passthrough
dtype: bfloat16
"""
BREADCRUMBS = """\
models:
  - model: MODELS/sft
    parameters: {weight: 0.5, density: 0.9, gamma: 0.02}
  - model: MODELS/math
    parameters: {weight: 0.3}
merge_method: breadcrumbs
base_model: MODELS/base
parameters:
  density: 0.85
tokenizer_source: union
"""
DELLA = """\
models:
  - model: MODELS/sft
    parameters:
      weight: 1
      density: 0.5
      epsilon: 0.1
  - model: MODELS/math
    parameters:
      weight: 1
      density: 0.4
merge_method: della
base_model: MODELS/base
parameters:
  normalize: false
  lambda: 0.9
dtype: bfloat16
"""
NUSLERP = """\
models:
  - model: MODELS/sft
    parameters: {weight: 1}
  - model: MODELS/math
    parameters: {weight: 3}
merge_method: nuslerp
base_model: MODELS/base
parameters:
  nuslerp_flatten: false
  nuslerp_row_wise: true
tokenizer:
  source: union
"""

FILES: dict[str, tuple[str, dict[str, Any]]] = {  # each with its steps and what it says of output and slices
    "linear": (
        LINEAR,
        {
            "steps": [{"op": "linear", "models": ["sft", "math"], "weights": {"sft": 0.75, "math": 0.5}}],
            "start": "sft",
            "output": {"dtype": "float16"},
        },
    ),
    "slerp": (
        SLERP,
        {
            "slices": [{"base": "0-3", "sft": "0-3"}],
            "steps": [
                {
                    "op": "slerp",
                    "models": ["base", "sft"],
                    "t": [
                        {"tensors": "*self_attn*", "optional": True, "value": [0, 0.5, 0.3, 0.7, 1]},
                        {"tensors": "*mlp*", "optional": True, "value": [1, 0.5, 0.7, 0.3, 0]},
                        {"value": 0.5},
                    ],
                }
            ],
            "start": "base",
            "output": {"dtype": "bfloat16"},
        },
    ),
    "ties": (
        TIES,
        {
            "steps": [
                {
                    "op": "ties",
                    "base": "base",
                    "models": ["sft", "math", "code"],
                    "weights": {
                        "sft": 1.0,
                        "math": [0, 0.3, 0.7, 1],
                        "code": [{"tensors": "*mlp*", "optional": True, "value": 0.5}, {"value": 0}],
                    },
                    "density": {"sft": [1, 0.7, 0.1], "math": 0.5, "code": 0.33},
                    "normalize": True,
                }
            ],
            "start": "base",
            "output": {"dtype": "float16"},
        },
    ),
    "dare_ties": (
        DARE_TIES,
        {
            "steps": [
                {
                    "op": "dare_ties",
                    "base": "base",
                    "models": ["sft", "math"],
                    "weights": {"sft": 0.4, "math": 0.3},
                    "density": {"sft": 0.53, "math": 0.6},
                }
            ],
            "start": "base",
            "output": {"dtype": "bfloat16", "vocabulary": "start"},
        },
    ),
    "task_arithmetic": (
        TASK_ARITHMETIC,
        {
            "steps": [
                {
                    "op": "task_arithmetic",
                    "base": "base",
                    "models": ["sft", "math"],
                    "weights": {"sft": 0.4, "math": -0.2},
                    "lambda": 1.1,
                }
            ],
            "start": "base",
            "output": {"dtype": "bfloat16"},
        },
    ),
    "model_stock": (
        MODEL_STOCK,
        {
            "steps": [{"op": "model_stock", "base": "base", "models": ["sft", "math", "code"], "filter_wise": True}],
            "start": "base",
            "output": {"vocabulary": "start"},
        },
    ),
    "frankenmerge": (
        FRANKENMERGE,
        {
            "slices": [{"base": "0-2"}, {"sft": "1-3"}],
            "steps": [
                {
                    "op": "reset_layers",
                    "from": "sft",
                    "select": {"tensors": ["all"], "exclude": ["embedding", "*.[0-9]*"]},
                }
            ],
            "start": "base",
            "output": {"dtype": "bfloat16"},
        },
    ),
    "breadcrumbs": (
        BREADCRUMBS,
        {
            "steps": [
                {
                    "op": "breadcrumbs",
                    "base": "base",
                    "models": ["sft", "math"],
                    "weights": {"sft": 0.5, "math": 0.3},
                    "density": {"sft": 0.9, "math": 0.85},
                    "gamma": {"sft": 0.02, "math": 0.01},
                }
            ],
            "start": "base",
            "output": {"vocabulary": "union"},
        },
    ),
    "della": (
        DELLA,
        {
            "steps": [
                {
                    "op": "della",
                    "base": "base",
                    "models": ["sft", "math"],
                    "weights": 1,
                    "density": {"sft": 0.5, "math": 0.4},
                    "epsilon": {"sft": 0.1, "math": 0.15},
                    "normalize": False,
                    "lambda": 0.9,
                }
            ],
            "start": "base",
            "output": {"dtype": "bfloat16"},
        },
    ),
    "nuslerp": (
        NUSLERP,
        {
            "steps": [
                {
                    "op": "nuslerp",
                    "base": "base",
                    "models": ["sft", "math"],
                    "weights": {"sft": 1, "math": 3},
                    "angles": "columns",
                }
            ],
            "start": "base",
            "output": {"vocabulary": "union"},
        },
    ),
}
