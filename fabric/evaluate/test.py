"""The test split: read once per trial, at the end, after every decision has been taken on the validation split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric.train.objectives.readout import ReadoutObjective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabric.data import TokenCache
    from fabric.planning.trial import TrialSpec
    from fabric.store import TrialRecord


def test_key(spec: TrialSpec) -> str:
    """The key under which a trial's reading of the test split is kept."""
    return f"test-{spec.evaluate.test_tokens or 'all'}"


def _own_examples(
    spec: TrialSpec, record: TrialRecord, cache: TokenCache, model: Any, said: Sequence[Any]
) -> dict[str, Any]:
    """Scores and remarks by the examples' official metrics; the outcomes are kept beside them."""
    from fabric.evaluate.in_trial import OwnExamples
    from fabric.evaluate.lm import evaluating

    with evaluating(model):
        _, kept = OwnExamples(spec, cache, "test").measure(model, said)
    found = dict(kept["examples"])
    record.write_evaluation(f"outcomes-{test_key(spec)}", {"outcomes": found.pop("outcomes")})
    return found


def read_test_split(spec: TrialSpec, record: TrialRecord, cache: TokenCache) -> dict[str, Any]:
    """Score the test split with a finished trial's last weights, and keep the result in its record.

    A result that is there already is returned as it is. Raises RuntimeError when the trial is not finished or has
    no checkpoint: what is read once must not be read too early.
    """
    from fabric.evaluate.again import finished_model
    from fabric.evaluate.lm import score
    from fabric.store import FINISHED

    taken = record.evaluation(test_key(spec))
    if taken is not None:
        return taken
    status = record.status()
    if status is None or status.state != FINISHED:
        state = status.state if status else "not begun"
        raise RuntimeError(f"trial {record.id} is {state}: the test split is read when a trial has finished")
    checkpoint, model = finished_model(spec, record)
    result = score(
        model,
        cache,
        "test",
        spec.data.seq_len,
        max_tokens=spec.evaluate.test_tokens,
        precision=spec.train.precision,
        objective=spec.train.objective,
        read=isinstance(spec.train.objective, ReadoutObjective),
    )
    body: dict[str, Any] = {
        "step": checkpoint.step,
        "test_loss": result.loss,
        "test_perplexity": result.perplexity,
        "test_bits_per_byte": result.bits_per_byte,
        "n_tokens": result.n_tokens,
    }
    if result.accuracy is not None:
        body |= {"test_accuracy": result.accuracy, "test_exact": result.exact}
    if isinstance(spec.train.objective, ReadoutObjective):
        body["examples"] = _own_examples(spec, record, cache, model, result.said)
    record.write_evaluation(test_key(spec), body)
    return body
