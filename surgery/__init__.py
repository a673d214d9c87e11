"""Edit fine-tuned language models by operating on their weights.

The verbs of the command line, for Python: `apply` (and `apply_all` for many outputs), `diff`, `extract_lora`,
`inspect`, `plan`, `recipes`, `schema`, `verify`.
"""

import surgery.plan  # first, since importing it later would put the module in the place of the function
from surgery.analysis.api import diff
from surgery.api import Variant, apply, apply_all, inspect, plan, recipes, schema, verify
from surgery.errors import (
    CheckpointError,
    NumericalError,
    OutputError,
    PlanError,
    RecipeError,
    SurgeryError,
    VerifyError,
)
from surgery.extraction.api import extract_lora

__all__ = [
    "CheckpointError",
    "NumericalError",
    "OutputError",
    "PlanError",
    "RecipeError",
    "SurgeryError",
    "Variant",
    "VerifyError",
    "apply",
    "apply_all",
    "diff",
    "extract_lora",
    "inspect",
    "plan",
    "recipes",
    "schema",
    "verify",
]
