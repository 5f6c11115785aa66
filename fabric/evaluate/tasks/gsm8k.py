"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168) in lm-evaluation-harness's two forms, by its own YAML and filters.

`gsm8k`: examples from the training rows, answers end "#### N". `gsm8k_cot`: the eight fixed worked examples of Wei et
al. 2022 (arXiv 2201.11903), answers end "The answer is N." Ours draws one set of examples for all items, the harness
one for each. Its strict pattern needs a character after the number: "The answer is 18" at a text's end gives 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from fabric.data.rows import Row, Table
from fabric.evaluate.generation import GenerationTask, Metric

ROWS = Table(("gsm8k/test.jsonl",), hub=("openai/gsm8k", "main", "test"))
EXAMPLES = Table(("gsm8k/train.jsonl",), hub=("openai/gsm8k", "main", "train"))
NAMES = {"strict_match": "strict-match", "flexible_extract": "flexible-extract"}


@cache
def definition(file: str) -> Mapping[str, Any]:
    """A task's YAML in the installed lm_eval. Raises ValueError where it is not installed, or has no such file."""
    import yaml

    try:
        import lm_eval
    except ImportError:
        raise ValueError(
            "GSM8K is scored by lm-evaluation-harness's filters, which is not installed: "
            "pip install 'experiment-fabric[eval]'"
        ) from None
    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / file
    if not path.is_file():
        raise ValueError(f"{path} is missing from lm-evaluation-harness {lm_eval.__version__}")
    found: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@cache
def _regex(file: str, name: str) -> Any:
    from lm_eval.filters.extraction import RegexFilter

    steps = next(f["filter"] for f in definition(file)["filter_list"] if f["name"] == name)
    settings = next(s for s in steps if s["function"] == "regex")
    return RegexFilter(**{k: v for k, v in settings.items() if k != "function"})


def taken(file: str, name: str, text: str) -> str:
    """What a filter of the YAML takes out of a text; "[invalid]" for nothing."""
    (found,) = _regex(file, name).apply([[text]], [{}])
    return str(found[0])


def is_exact(file: str, guess: str, references: Sequence[str]) -> float:
    """The harness's exact match, with what the YAML has it ignore."""
    from lm_eval.api.metrics import exact_match_hf_evaluate

    (metric,) = definition(file)["metric_list"]
    ignored = {k: v for k, v in metric.items() if k.startswith(("ignore", "regexes"))}
    return float(exact_match_hf_evaluate([guess], list(references), **ignored)["exact_match"])


def worked_examples() -> str:
    """The eight of gsm8k_cot, as they stand before each question."""
    samples = definition("gsm8k-cot.yaml")["fewshot_config"]["samples"]
    return "".join(f"Q: {s['question']}\nA: {s['target']}\n\n" for s in samples)


def _gsm8k(name: str, about: str, file: str, reference: Callable[[Row], str], **more: Any) -> GenerationTask:
    return GenerationTask(
        name=name,
        about=about,
        rows=ROWS,
        references=lambda row: [reference(row)],
        filters={ours: partial(taken, file, theirs) for ours, theirs in NAMES.items()},
        metrics={ours: Metric(ours, partial(is_exact, file), is_share=True) for ours in NAMES},
        requires=partial(definition, file),
        max_new_tokens=256,
        **more,
    )


TASKS = (
    _gsm8k(
        "gsm8k",
        "school mathematics in words, five examples",
        "gsm8k.yaml",
        lambda row: row.text("answer"),
        prompt=lambda row: f"Question: {row.text('question')}\nAnswer:",
        solved=lambda row: f"Question: {row.text('question')}\nAnswer: {row.text('answer')}",
        stops=("Question:", "</s>", "<|im_end|>"),
        examples=EXAMPLES,
        shots=5,
    ),
    _gsm8k(
        "gsm8k_cot",
        "school mathematics in words, eight fixed worked examples",
        "gsm8k-cot.yaml",
        lambda row: row.text("answer").split("####")[-1].strip(),
        prompt=lambda row: f"Q: {row.text('question')}\nA:",
        before=worked_examples,
        stops=("Q:", "</s>", "<|im_end|>"),
    ),
)
