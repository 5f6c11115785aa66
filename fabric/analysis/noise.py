"""How much a loss varies from seed to seed, from finished runs of the same size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fabric.planning.trial import TrialSpec, canonical_json
from fabric.store import FINISHED, Store

if TYPE_CHECKING:
    from fabric.planning.study import Study


def seed_spread(store: Store, study: Study) -> float | None:
    """The pooled standard deviation over seeds (nats) of runs with this study's tokens and width; None without any.

    Runs that differ in nothing but the seed form a group; groups of two and more are pooled by degrees of freedom.
    """
    base = study.base
    groups: dict[str, list[float]] = {}
    for trial_id in store.trial_ids():
        record = store.trial(trial_id)
        status, body = record.status(), record.spec()
        if status is None or status.state != FINISHED or not body:
            continue
        loss = (status.final or {}).get("val_loss")
        try:
            spec = TrialSpec.model_validate(body)
        except ValueError:
            continue  # a record of another version
        same_size = (spec.model.d_model, spec.model.n_layers) == (base.model.d_model, base.model.n_layers)
        if loss is None or not math.isfinite(loss) or not same_size or spec.train.tokens != base.train.tokens:
            continue
        measured = (record.provenance(status.attempt) or {}).get("evaluation")
        identity = {**spec.identity(), "seed": None, "measured": measured}
        groups.setdefault(canonical_json(identity), []).append(loss)
    squares, freedom = 0.0, 0
    for losses in groups.values():
        mean = sum(losses) / len(losses)
        squares += sum((x - mean) ** 2 for x in losses)
        freedom += len(losses) - 1
    return math.sqrt(squares / freedom) if freedom else None
