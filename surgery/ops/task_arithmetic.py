"""Adding task vectors."""

from __future__ import annotations

from typing import Literal

from surgery.ops.task_vector_sum import TaskVectorSum


class TaskArithmetic(TaskVectorSum):
    """W' = b + lambda sum_i w_i d_i over the task vectors d_i = W_i - b, the sum divided by sum_i w_i with `normalize`.

    One model with weight 1 gives that model, to rounding. A negative weight takes away what the model learned. Source:
    Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089.
    """

    op: Literal["task_arithmetic"]
