"""The README.md of an exported model: what it is, what it was trained on, how well it does, and what is not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabric.analysis.collect import MOST_PHASES
from fabric.job.metrics import METRICS, metric_info
from fabric.store import Store, TrialRecord
from fabric.trained import Trained, Trial
from models import n_params

# What says how good a model is; the card names those that were not measured.
QUALITY = ("val_loss", "val_bits_per_byte", "test_loss", "recall_accuracy", "minimal_pairs_accuracy")


def model_card(trained: Trained, hf_class: str, model_type: str) -> str:
    """Markdown with the front matter of Hugging Face's cards; `model_type` is its config's."""
    trial = trained.trial
    lines = [*_front_matter(trained), "", f"# {_title(trained)}", "", *_about(trained, hf_class)]
    if trial is not None:
        metrics = _metrics(trial.record)
        lines += ["", "## Training", "", *_training(trial), "", "## Metrics", "", *_table(metrics)]
        lines += ["", "## Limits", "", *_limits(trained, metrics)]
    lines += ["", "## Use", "", *_use(trained, model_type)]
    return "\n".join(lines) + "\n"


def _front_matter(trained: Trained) -> list[str]:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license="unknown",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["experiment-fabric", "causal-lm", trained.model.config.mixer.kind],
    )
    return ["---", data.to_yaml().strip(), "---"]


def _title(trained: Trained) -> str:
    trial = trained.trial
    return trained.source.name if trial is None else f"{trial.store.root.name} / {trial.record.id}"


def _about(trained: Trained, hf_class: str) -> list[str]:
    config = trained.model.config
    made = "Converted" if trained.trial is None else "Trained"
    return [
        f"{made} with experiment-fabric. License: unspecified.",
        "",
        f"- class: `{hf_class}`, {n_params(config):,} parameters",
        f"- {config.n_layers} layers of {config.mixer.kind} and {config.ffn.kind}, width {config.d_model}, "
        f"{config.norm.kind} ({config.norm_placement})",
        f"- vocabulary: {config.vocab_size}, context: {config.max_seq_len} tokens",
    ]


def _training(trial: Trial) -> list[str]:
    spec, train = trial.spec, trial.spec.train
    corpus = spec.data.corpus
    status = trial.record.status()
    steps = status.step if status else 0
    arms = arms_of(trial.store, trial.record.id)
    named = getattr(corpus, "path", None) or getattr(corpus, "name", None)
    data = f"{corpus.kind} ({named})" if named else corpus.kind
    licence = corpus.LICENSE or "not known here: see where the text comes from"
    started = "" if spec.weights is None else f"- started from: weights {spec.weights}"
    lines = [
        f"- job: {trial.store.root.name}",
        f"- trial: {trial.record.id}" + (f", arm: {', '.join(arms)}" if arms else ""),
        f"- data: {data}; licence: {licence}",
        f"- tokenizer: {spec.data.tokenizer.kind}, texts of {spec.data.seq_len} tokens",
        f"- tokens: {steps * train.batch_size * spec.data.seq_len:,} in {steps:,} steps of {train.batch_size} texts",
        f"- optimizer: {train.optimizer.kind}, learning rate {train.optimizer.lr:g}, schedule "
        f"{train.schedule.kind}, precision {train.precision}",
        f"- seed: {spec.seed}",
        started,
    ]
    return [line for line in lines if line]


def arms_of(store: Store, trial_id: str) -> list[str]:
    """The names under which a store's studies compare a trial."""
    names: list[str] = []
    for study in store.studies():
        for index in range(MOST_PHASES):
            plan = store.study(study, f"plan-{index}") or {"arms": []}
            for i, arm in enumerate(plan["arms"]):
                rate = store.study(study, f"rate-{index}-{i}") or {}
                if trial_id in [t["id"] for t in [*arm["tuning"], *rate.get("trials", ())]]:
                    names.append(arm["name"])
    return list(dict.fromkeys(names))


def _metrics(record: TrialRecord) -> dict[str, float]:
    """The last row, and the test split where it was read."""
    status = record.status()
    found: dict[str, Any] = dict((status.final or {}) if status else {})
    for key in record.evaluation_keys():
        if key.startswith("test-"):
            found |= {k: v for k, v in (record.evaluation(key) or {}).items() if k.startswith("test_")}
    return {
        k: v
        for k, v in found.items()
        if isinstance(v, int | float) and metric_info(k) and not isinstance(v, bool)
    }


def _table(metrics: Mapping[str, float]) -> list[str]:
    lines = ["| metric | value | unit | what it is |", "| --- | --- | --- | --- |"]
    for key, value in metrics.items():
        info = metric_info(key)
        if info is not None:
            lines.append(f"| {key} | {value:.6g} | {info.unit} | {info.about} |")
    return lines


def _limits(trained: Trained, metrics: Mapping[str, float]) -> list[str]:
    missing = [key for key in QUALITY if key not in metrics]
    lines = [
        "- A small research model, made to compare architectures: it knows its training text only, and has had no "
        "instruction tuning and no check for harmful output.",
        f"- It reads at most {trained.model.config.max_seq_len} tokens.",
    ]
    if missing:
        lines.append("- Not measured: " + "; ".join(f"{key} ({METRICS[key].about})" for key in missing) + ".")
    return lines


def _use(trained: Trained, model_type: str) -> list[str]:
    ours = (
        ["import models.hf  # of experiment-fabric: registers the class", ""]
        if model_type == "fabric"
        else []
    )
    n_new = min(64, trained.model.config.max_seq_len // 2)
    return [
        "```python",
        *ours,
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        'ids = tokenizer("The", return_tensors="pt")',
        f"print(tokenizer.decode(model.generate(**ids, max_new_tokens={n_new})[0]))",
        "```",
    ]
