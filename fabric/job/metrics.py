"""Every metric key, once: unit, direction and meaning. Records, tables and Tune's columns use these names."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """Unit and direction of a metric; `better` is None where neither direction is."""

    unit: str
    better: Literal["lower", "higher"] | None
    about: str


METRICS: dict[str, Metric] = {
    # over time
    "step": Metric("steps", None, "optimizer steps done"),
    "tokens": Metric("tokens", None, "training tokens seen"),
    "flops": Metric("FLOPs", None, "training FLOPs spent (forward + 2x backward)"),
    "seconds": Metric("s", None, "training time, evaluation apart"),
    "train_loss": Metric("nats/token", "lower", "training loss of the step"),
    "lr": Metric("", None, "learning rate of the step"),
    "grad_norm": Metric("", None, "global gradient norm before clipping"),
    "loss_scale": Metric("", None, "fp16 loss scale"),
    "data_seconds": Metric("s", "lower", "time spent waiting for data since the start"),
    "exposed_allreduce_seconds": Metric(
        "s",
        "lower",
        "of a step, from the end of the rank's own backward pass until its gradients are summed over the ranks "
        "(rank 0's while training; at the end the mean over ranks of their medians); several workers only",
    ),
    "data_hash": Metric("", None, "hash of the tokens of the step's batch"),
    "order": Metric("", None, "of the training text: exact, or approximate (a stream's)"),
    "val_loss": Metric(
        "nats/token",
        "lower",
        "negative log-likelihood on the validation split (denoise: of its masked tokens)",
    ),
    "val_tokens": Metric("tokens", None, "validation tokens asked for while training"),
    "val_accuracy": Metric(
        "", "higher", "asked positions of labelled examples answered right; None for a text"
    ),
    "val_exact": Metric("", "higher", "labelled examples with every asked position right; None for a text"),
    # at the end
    "val_perplexity": Metric("", "lower", "exp(val_loss); None where the loss is not the text's likelihood"),
    "val_bits_per_byte": Metric("bits/byte", "lower", "comparable between tokenizers"),
    "test_loss": Metric("nats/token", "lower", "negative log-likelihood on the test split, read once"),
    "test_perplexity": Metric("", "lower", "exp(test_loss)"),
    "test_bits_per_byte": Metric("bits/byte", "lower", "comparable between tokenizers"),
    "test_accuracy": Metric("", "higher", "val_accuracy, on the test split"),
    "test_exact": Metric("", "higher", "val_exact, on the test split"),
    "recall_accuracy": Metric(
        "", "higher", "tokens of a repeated segment predicted right at their second occurrence"
    ),
    "recall_gain": Metric("nats/token", "higher", "loss of a segment's first occurrence minus its second"),
    "minimal_pairs_accuracy": Metric(
        "", "higher", "grammatical sentence more likely than its ungrammatical twin"
    ),
    "distinct_1": Metric("", "higher", "distinct unigrams / unigrams over the samples"),
    "distinct_2": Metric("", "higher", "distinct bigrams / bigrams over the samples"),
    "repetition_4": Metric("", "lower", "1 - distinct / all 4-grams within a sample, mean"),
    "tokens_per_second": Metric("tokens/s", "higher", "batch tokens / median step time after warm-up"),
    "flops_per_second": Metric("FLOP/s", "higher", "model FLOPs per second at that speed"),
    "mfu": Metric("", "higher", "flops_per_second over the device's peak; None when the peak is unknown"),
    "peak_memory_bytes": Metric("B", "lower", "peak resident memory of the trial (VmHWM, or CUDA's peak)"),
    "state_bytes_per_token": Metric(
        "B/token", "lower", "KV cache bytes of a text of training length over its tokens, all layers, bf16"
    ),
    "loss_smoothness": Metric("nats", "lower", "std of loss minus its running median (51), last half"),
    "loss_spikes": Metric("", "lower", "steps whose residual exceeds 6 x 1.4826 x MAD"),
    "loss_total_variation": Metric("", "lower", "sum |dL| / (first - last loss)"),
    "grad_norm_median": Metric("", None, "median gradient norm before clipping"),
    "grad_norm_p95": Metric("", None, "95th percentile"),
    "grad_norm_max_ratio": Metric("", "lower", "largest gradient norm over the median"),
    "clip_fraction": Metric("", None, "share of steps whose gradient was clipped"),
    "skipped_steps": Metric("steps", "lower", "fp16 steps skipped for overflow"),
    "lr_sensitivity": Metric(
        "nats", "lower", "mean loss above the best rate's over the rate grid (>= 5 rates)"
    ),
    "n_params": Metric("", "lower", "unique parameters"),
    "exposed_allreduce_fraction": Metric("", "lower", "exposed_allreduce_seconds over the median step time"),
    "data_wait_fraction": Metric("", "lower", "share of the step spent waiting for data"),
}
PER_LENGTH = ("val_loss_at", "tokens_per_second_at")  # + _<T>
PER_BATCH = ("tokens_per_second_batch",)  # + _<B>


def metric_info(key: str) -> Metric | None:
    """The metric behind a key, also for the families `val_loss_at_<T>`, `task.<task>.<metric>` and the like."""
    if key in METRICS:
        return METRICS[key]
    if key.startswith("task."):
        return _of_task(*key.removeprefix("task.").rpartition(".")[::2])
    stem, _, number = key.rpartition("_")
    if number.isdigit() and stem in PER_LENGTH:
        return METRICS["val_loss" if stem.startswith("val") else "tokens_per_second"]
    if number.isdigit() and stem in PER_BATCH:
        return METRICS["tokens_per_second"]
    return None


def _of_task(label: str, name: str) -> Metric | None:
    from fabric.evaluate.tasks import task

    try:
        found = task(label)
    except ValueError:
        return None
    measure = found.measures.get(name)
    return None if measure is None else Metric("", measure.better, f"{found.about}: {name}")
