"""Whether what is asked fits into a model's context, found out by its tokenizer alone."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.evaluation import Evaluation
from evalkit.rendering import Renderer
from evalkit.run import no_room
from evalkit.task import Example


def check_room(evaluation: Evaluation, renderer: Renderer, asked: Sequence[Example], scored: Sequence[Example]) -> None:
    """Try the prompts of the examples that are asked, and those that are scored with their reference answers.

    Raises TaskError for the first that leaves no room, EngineError where one cannot be rendered.
    """
    asking, sampling = evaluation.asking, evaluation.sampling
    for example in asked:
        tokens = len(renderer.tokens(asking.prompt(example)))
        if not renderer.room(tokens, sampling.max_tokens):
            raise no_room(renderer.name, example, tokens, sampling.max_tokens)
    for example in scored:
        prompt, answer = renderer.pair(asking.prompt(example), asking.task.reference(example.data), end=True)
        if not renderer.room(len(prompt), len(answer)):
            raise no_room(renderer.name, example, len(prompt), len(answer))
