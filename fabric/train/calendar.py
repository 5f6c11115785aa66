"""Which steps of a run are evaluated: a pure function of the settings, the same in the planner and in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fabric.evaluate.config import EvaluateConfig


@dataclass(frozen=True)
class Calendar:
    """Steps are counted as done: step n is after n updates. The last step is always evaluated.

    `scheduled` evaluations are what early stopping sees; `rungs` belong to the scheduler and change no number; at
    `tasks` the job's tasks are measured too.
    """

    n_steps: int
    scheduled: frozenset[int]
    rungs: frozenset[int]
    tasks: frozenset[int] = frozenset()

    def evaluated(self, step: int) -> bool:
        return step in self.scheduled or step in self.rungs or step in self.tasks or step == self.n_steps


def calendar(
    n_steps: int, tokens_per_step: int, evaluate: EvaluateConfig, rung_tokens: Sequence[int] = ()
) -> Calendar:
    """A rung lies at the first step with at least its tokens; those at the end or beyond are the end."""
    if evaluate.every_tokens is not None:
        total = n_steps * tokens_per_step
        marks = range(evaluate.every_tokens, total + 1, evaluate.every_tokens)
        scheduled = {step_of(tokens, tokens_per_step) for tokens in marks}
    else:
        scheduled = _spread(n_steps, evaluate.times)
    rungs = {step_of(tokens, tokens_per_step) for tokens in rung_tokens}
    return Calendar(
        n_steps,
        frozenset(s for s in scheduled if 0 < s <= n_steps),
        frozenset(s for s in rungs if 0 < s < n_steps),
        frozenset(s for s in _spread(n_steps, evaluate.tasks_times) if s > 0)
        if evaluate.tasks
        else frozenset(),
    )


def _spread(n_steps: int, times: int) -> set[int]:
    """Steps at even distances, the last one among them."""
    return {round(i * n_steps / times) for i in range(1, times + 1)}


def step_of(tokens: int, tokens_per_step: int) -> int:
    """The first step after which at least `tokens` were seen."""
    return -(-tokens // tokens_per_step)
