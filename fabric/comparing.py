"""`fabric.compare`: two trained models on the same items of tasks, paired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fabric.analysis.stats import holm
from fabric.evaluate.scores import Difference
from fabric.evaluate.tasks import task as task_of
from fabric.measuring import Measured, Precision, measure_all

if TYPE_CHECKING:
    from fabric.store import Url

ALPHA = 0.05
Verdict = Literal["better", "worse", "within noise", "differs"]


@dataclass(frozen=True)
class Compared:
    """B against A in one metric of one task: absolute difference, the relative one (None where A is 0), and a verdict.

    `p_holm`: p adjusted (Holm 1979) for all headline metrics of the comparison; None for other metrics, whose verdict
    is by their own p.
    """

    task: str
    metric: str
    a: float
    b: float
    difference: Difference
    relative: float | None
    p_holm: float | None
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare(
    a: str | Path | Url,
    b: str | Path | Url,
    tasks: Iterable[str],
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    out: str | Path | None = None,
) -> list[Compared]:
    """B minus A in every metric of every task, paired by item: McNemar's test of shares, a paired bootstrap of others.

    Targets, tasks and options are those of `fabric.measure`, errors too. Raises ValueError where the two were asked
    different items (windows of two tokenizers, say).
    """
    names = list(tasks)
    of_a, of_b = measure_all([a, b], names, data=data, limit=limit, seed=seed, precision=precision, out=out)
    found = [entry for pair in zip(of_a, of_b, strict=True) for entry in _differences(*pair)]
    headlines = [d for _, _, d, is_headline in found if is_headline]
    adjusted = dict(zip(map(id, headlines), holm([d.p for d in headlines]), strict=True))
    return [_compared(pair, metric, d, adjusted.get(id(d))) for pair, metric, d, _ in found]


def _differences(a: Measured, b: Measured) -> list[tuple[tuple[Measured, Measured], str, Difference, bool]]:
    try:
        differences = task_of(a.task).differences(a.outcomes, b.outcomes)
    except ValueError as error:
        raise ValueError(f"{a.task} of {a.target} and {b.target}: {error}") from None
    return [((a, b), name, d, i == 0) for i, (name, d) in enumerate(differences.items())]


def _compared(
    pair: tuple[Measured, Measured], metric: str, difference: Difference, p_holm: float | None
) -> Compared:
    a, b = (measured.scores[metric].value for measured in pair)
    relative = difference.value / abs(a) if a else None
    p = difference.p if p_holm is None else p_holm
    better = task_of(pair[0].task).measures_of(pair[0].outcomes)[metric].better
    verdict: Verdict = "within noise"
    if p < ALPHA and difference.value:
        went_up = difference.value > 0
        verdict = "differs" if better is None else "better" if went_up == (better == "higher") else "worse"
    return Compared(pair[0].task, metric, a, b, difference, relative, p_holm, verdict)
