"""Peak memory of a training step with a vocabulary of 49,152 and texts of 1,024 tokens, against transformers."""

from __future__ import annotations

from typing import Any

from fabric.bench.measure import Figure, Measured, Setting, in_turn
from fabric.bench.process import call
from fabric.bench.training import OURS, THEIRS, Training, decoder
from fabric.planning.machine import cpu_count

CHOICES = ("fp32", "bf16")
WIDTH, LAYERS, TOKENS, VOCABULARY, BATCH = 576, 4, 1024, 49_152, 2
QUICK_WIDTH, QUICK_LAYERS, QUICK_TOKENS, QUICK_VOCABULARY = 64, 2, 128, 4096
TARGET = 0.8
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}


def run(setting: Setting) -> Measured:
    """Every measurement is a process of its own: its highest resident size, less that before the model was built.

    Raises RuntimeError when the losses of the two sides differ.
    """
    threads = min(2, cpu_count())
    figures: dict[str, Figure] = {}
    for precision in [p for p in CHOICES if p in setting.only] or CHOICES:
        losses: dict[str, list[float]] = {}

        def peak(whose: str, precision: str = precision, losses: dict[str, list[float]] = losses) -> float:
            task = _training(whose, precision, setting.quick, threads).task()
            found: dict[str, Any] = call("fabric.bench.training:peak_memory", task)
            losses[whose] = found["losses"]
            setting.say(f"{precision} {whose}: {found['bytes'] / 2**20:,.0f} MiB")
            return float(found["bytes"] / 2**20)

        sides = in_turn({k: (lambda k=k, peak=peak: peak(k)) for k in (OURS, THEIRS)}, setting.repeats)  # type: ignore[misc]
        _check(precision, losses)
        figures[f"{precision}: ours over theirs"] = Figure(
            sides[OURS].median / sides[THEIRS].median,
            "x",
            sides,
            ("<=", TARGET),
            "MiB above the process before it",
        )
    return Measured(figures, str(threads))


def _training(whose: str, precision: str, quick: bool, threads: int) -> Training:
    if quick:
        model = decoder(QUICK_WIDTH, QUICK_LAYERS, QUICK_TOKENS, QUICK_VOCABULARY)
        return Training(whose, precision, False, model, BATCH, QUICK_TOKENS, threads)
    model = decoder(WIDTH, LAYERS, TOKENS, VOCABULARY)
    return Training(whose, precision, False, model, BATCH, TOKENS, threads)


def _check(precision: str, losses: dict[str, list[float]]) -> None:
    pairs = zip(losses[OURS], losses[THEIRS], strict=True)
    if not all(abs(a - b) <= LOSS_TOLERANCE[precision] * b for a, b in pairs):
        raise RuntimeError(
            f"{precision}: the sides do not compute the same, losses {losses}; their memory says nothing"
        )
