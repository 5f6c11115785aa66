"""Training tokens a second against transformers, by size, precision and compiler; `--profile` says where time goes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from fabric.bench.measure import Figure, Measured, Sample, Setting, in_turn
from fabric.bench.process import Child, call
from fabric.bench.training import N_FIRST, OURS, THEIRS, Training, decoder
from fabric.planning.machine import cpu_count

SIZES = ("128x256", "128x1024", "256x256", "256x1024", "576x256", "576x1024")  # width x tokens of a text
QUICK_SIZE, PROFILED_SIZE, LARGEST = "64x32", "256x256", "576"
PRECISIONS = ("fp32", "bf16")
CHOICES = (QUICK_SIZE, *SIZES, *PRECISIONS, "eager")
LAYERS, VOCABULARY, TOKENS, QUICK_TOKENS = 4, 4096, 2048, 256
PROFILED_STEPS = 10
NAMED_KERNELS = {
    "TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE": "1"
}  # else compiled code is one block to the profiler
MEASURED_SECONDS = 1.0  # of steps in one measurement
MATMUL, QUICK_MATMUL = 2048, 256
MATMUL_OF = "square product"
# A speed of something else is no speed: how far losses and gradient norms of the first steps may lie apart.
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
NORM_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
OVER_EAGER, OVER_COMPILED, OVER_FP32 = {"fp32": 1.3, "bf16": 1.5}, 1.1, 2.5
OF_PEAK, WARM_SECONDS = {"fp32": 0.70, "bf16": 0.40}, 5.0


def run(setting: Setting) -> Measured:
    """Every side is a process of its own, as its users start it; their steps are timed in turn.

    Raises RuntimeError when two sides disagree on the first steps' losses or gradient norms.
    """
    figures: dict[str, Figure] = {}
    apart: dict[str, Any] = {}
    threads = min(2, cpu_count())
    for size in sizes(setting):
        found, apart[size] = _measure(size, setting, threads)
        figures |= found
    return Measured(figures, str(threads), {"apart": apart})


def profile(setting: Setting) -> Measured:
    """A table, a flame graph and folded stacks of every side asked for, in `<out>/profiles`; no figures."""
    threads = min(2, cpu_count())
    folder, steps = setting.out / "profiles", 2 if setting.quick else PROFILED_STEPS
    tables, files = {}, []
    for size in sizes(setting, unless_chosen=(PROFILED_SIZE,)):
        for label, side in sides(size, setting, threads).items():
            setting.say(f"{size} {label}")
            name = f"step-{size}-{label.replace(' ', '-')}"
            task = {"folder": str(folder), "name": name, "steps": steps, **side.task()}
            found = call("fabric.bench.profiling:profiled", task, NAMED_KERNELS)
            tables[f"{size} {label}"] = found["rows"]
            files += found["files"]
    return Measured({}, str(threads), {"profiles": tables, "files": files})


def sizes(setting: Setting, unless_chosen: Sequence[str] = SIZES) -> list[str]:
    """The sizes chosen; else the quick one or those given."""
    chosen = [size for size in (QUICK_SIZE, *SIZES) if size in setting.only]
    return chosen or ([QUICK_SIZE] if setting.quick else list(unless_chosen))


def sides(size: str, setting: Setting, threads: int) -> dict[str, Training]:
    """The sides of a size that the setting asks for, by label."""
    compilers = (False,) if "eager" in setting.only else (False, True)
    precisions = [p for p in PRECISIONS if p in setting.only] or list(PRECISIONS)
    found = [
        training(size, whose, precision, compiled, threads)
        for precision in precisions
        for compiled in compilers
        for whose in (OURS, THEIRS)
    ]
    return {side.label: side for side in found}


def training(size: str, whose: str, precision: str, compiled: bool, threads: int) -> Training:
    """One side of a size such as 256x1024."""
    width, seq_len = map(int, size.split("x"))
    batch = (QUICK_TOKENS if size == QUICK_SIZE else TOKENS) // seq_len
    model = decoder(width, LAYERS, seq_len, VOCABULARY)
    return Training(whose, precision, compiled, model, batch, seq_len, threads)


def _measure(size: str, setting: Setting, threads: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """A size's figures, and how far its sides' first steps lie apart."""
    asked = sides(size, setting, threads)
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="fabric-compiled-") as folder:
        children: dict[str, Child] = {}
        for label, side in asked.items():
            # Compiled code of its own: what one side compiled is no help to another, nor what the last run did.
            child = Child("fabric.bench.training:serve", side.task(), _cache(folder, label))
            children[label] = stack.enter_context(child)
            apart = agreement({k: c.first for k, c in children.items()})
            setting.say(f"{size} {label}: ready, its first steps took {sum(child.first['seconds']):.1f} s")
        steady = {label: child.ask({"steps": 2})["seconds"] / 2 for label, child in children.items()}
        compiled = [label for label, side in asked.items() if side.compiled]
        cold = {label: _compile_seconds(children[label].first, steady[label]) for label in compiled}
        warm = {
            label: _warm(asked[label], _cache(folder, label), steady[label])
            for label in compiled
            if asked[label].whose == OURS
        }
        measured = _in_turn(asked, children, steady, setting, threads)
    for label, sample in measured.items():
        setting.say(f"{size} {label}: {sample.median:,.0f} {'tokens' if label in asked else 'GFLOP'}/s")
    found = {
        **_speeds(measured),
        **_achieved(asked, measured, of_target=size.startswith(LARGEST)),
        **_compiled(cold, warm),
    }
    return {f"{size} {name}": figure for name, figure in found.items()}, apart


def _in_turn(
    asked: Mapping[str, Training],
    children: Mapping[str, Child],
    steady: Mapping[str, float],
    setting: Setting,
    threads: int,
) -> dict[str, Sample]:
    """Tokens a second of every side, and GFLOP/s of a square matrix product in each precision."""
    n = {k: 1 if setting.quick else max(1, round(MEASURED_SECONDS / s)) for k, s in steady.items()}

    def speed(label: str) -> float:
        seconds: float = children[label].ask({"steps": n[label]})["seconds"]
        return n[label] * asked[label].tokens / seconds

    task = {"threads": threads, "size": QUICK_MATMUL if setting.quick else MATMUL, "times": 5}
    with Child("fabric.bench.training:matmul_speed", task) as matmul:
        turns = {label: (lambda label=label: speed(label)) for label in asked}
        turns |= {f"{MATMUL_OF} {p}": (lambda p=p: float(matmul.ask(p))) for p in PRECISIONS}
        return in_turn(turns, setting.repeats)


def _cache(folder: str, label: str) -> dict[str, str]:
    """Where a side's compiled code goes."""
    return {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{label.replace(' ', '-')}"}


def _warm(side: Training, env: Mapping[str, str], steady: float) -> float:
    """Seconds the compiler takes in a fresh process that finds its code on disk."""
    with Child("fabric.bench.training:serve", side.task(), env) as child:
        return _compile_seconds(child.first, steady)


def _compile_seconds(first: Mapping[str, list[float]], steady: float) -> float:
    return max(0.0, sum(first["seconds"]) - N_FIRST * steady)


def agreement(first: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    """How far each side's first losses and gradient norms lie from the first side's of its precision, relatively.

    Raises RuntimeError beyond the tolerance.
    """
    apart: dict[str, dict[str, float]] = {}
    references: dict[str, Mapping[str, list[float]]] = {}
    for label, mine in first.items():
        precision = label.split()[1]
        other = references.setdefault(precision, mine)
        limits = {"loss": LOSS_TOLERANCE[precision], "norm": NORM_TOLERANCE[precision]}
        apart[label] = {k: _apart(mine[k], other[k]) for k in limits}
        for key, limit in limits.items():
            if not apart[label][key] <= limit:
                raise RuntimeError(
                    f"{label} does not compute what the others do: {key} {mine[key]} against {other[key]} in the "
                    f"first steps, {apart[label][key]:.1e} apart where {limit:g} is allowed; its speed says nothing"
                )
    return apart


def _apart(mine: Iterable[float], other: Iterable[float]) -> float:
    gaps = [abs(a - b) / abs(b) for a, b in zip(mine, other, strict=True)]
    return max(gaps) if all(map(math.isfinite, gaps)) else math.inf  # NaN is never the largest


def _speeds(measured: Mapping[str, Sample]) -> dict[str, Figure]:
    """Our best over each of theirs, same precision; and over their plain fp32."""
    found = {}
    for precision in PRECISIONS:
        for kind, target in (("eager", OVER_EAGER[precision]), ("compiled", OVER_COMPILED)):
            theirs = f"{THEIRS} {precision} {kind}"
            if theirs in measured:
                name = f"{precision}: ours over theirs {kind}"
                found[name] = _over(measured, f"{OURS} {precision}", theirs, target)
    plain = f"{THEIRS} fp32 eager"
    if plain in measured and f"{OURS} bf16 eager" in measured:
        found["our best over their fp32 eager"] = _over(measured, OURS, plain, OVER_FP32)
    return found


def _over(measured: Mapping[str, Sample], ours: str, theirs: str, target: float) -> Figure:
    mine = {k: s for k, s in measured.items() if k.startswith(ours)}
    best = max(mine, key=lambda k: mine[k].median)
    value = mine[best].median / measured[theirs].median
    note = f"tokens/s; our best is {best.removeprefix(OURS).strip()}"
    return Figure(value, "x", {**mine, theirs: measured[theirs]}, (">=", target), note)


def _achieved(
    asked: Mapping[str, Training],
    measured: Mapping[str, Sample],
    of_target: bool,
) -> dict[str, Figure]:
    """The share of this machine's matrix product speed that our fastest step reaches."""
    from models import ModelConfig, flops_per_token

    found = {}
    for precision in PRECISIONS:
        mine = [k for k, side in asked.items() if side.whose == OURS and side.precision == precision]
        if not mine:
            continue
        best = max(mine, key=lambda k: measured[k].median)
        config = ModelConfig.model_validate(asked[best].model)
        flops = 3 * flops_per_token(config, asked[best].seq_len)
        speed = Sample(tuple(v * flops / 1e9 for v in measured[best].values))
        peak = measured[f"{MATMUL_OF} {precision}"]
        # Medians of both: the clock, and what else runs on the host, change from measurement to measurement.
        share = speed.median / peak.median
        found[f"{precision}: share of the matmul peak"] = Figure(
            share,
            "",
            {f"{best}, GFLOP/s": speed, f"{MATMUL_OF}, GFLOP/s": peak},
            (">=", OF_PEAK[precision]) if of_target else None,
            f"{speed.median:.0f} of {peak.median:.0f} GFLOP/s; norms, softmax and the update not counted as work",
        )
    return found


def _compiled(cold: Mapping[str, float], warm: Mapping[str, float]) -> dict[str, Figure]:
    """Seconds in the compiler, once a side: with nothing on disk, and ours in a fresh process with its code there."""
    if not cold:
        return {}
    mine = max(seconds for label, seconds in cold.items() if label.startswith(OURS))
    found = {
        "compiling, cold": Figure(mine, "s", {k: Sample((v,)) for k, v in cold.items()}, note="our longest"),
    }
    longest = max(warm.values())
    found["compiling, warm"] = Figure(
        longest, "s", {k: Sample((v,)) for k, v in warm.items()}, ("<=", WARM_SECONDS), "our longest"
    )
    return found
