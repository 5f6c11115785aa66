"""Greedy decoding of one text with SmolLM's 135M shape against transformers' `generate`, same weights and tokens."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fabric.bench.measure import Figure, Measured, Sample, Setting, in_turn
from fabric.bench.process import Child
from fabric.bench.training import OURS, THEIRS
from fabric.bench.work import timed
from fabric.planning.machine import cpu_count

if TYPE_CHECKING:
    from torch import Tensor

    from models import CausalLM

CHOICES = ("fp32", "bf16")
PRESET, QUICK_PRESET = "smollm-135m", "smollm-tiny"
PROMPT, NEW, QUICK_NEW = 32, 64, 24
# bf16 rounds each product: at the first two nearly equal logits the texts part. Each token of theirs must then be
# ours too, or its logit this near our largest (logits here have a standard deviation of 1).
NEAR = 0.1
TARGET = 1.5


def run(setting: Setting) -> Measured:
    """Each side is a process of its own; the whole call is timed, prompt included, after one to warm up.

    Raises RuntimeError when the tokens differ: in fp32 at all, in bf16 by more than rounding.
    """
    threads, n_new = min(2, cpu_count()), QUICK_NEW if setting.quick else NEW
    figures: dict[str, Figure] = {}
    agreed: dict[str, int] = {}
    for precision in [p for p in CHOICES if p in setting.only] or CHOICES:
        task = {
            "preset": QUICK_PRESET if setting.quick else PRESET,
            "precision": precision,
            "n_new": n_new,
            "threads": threads,
        }
        with ExitStack() as stack:
            children = {
                whose: stack.enter_context(Child("fabric.bench.generate:serve", {"whose": whose, **task}))
                for whose in (OURS, THEIRS)
            }
            theirs = children[THEIRS].first["tokens"]
            gaps = children[OURS].ask({"text": theirs})["gaps"]
            agreed[precision] = agreement(precision, children[OURS].first["tokens"], theirs, gaps)
            setting.say(f"{precision}: {agreed[precision]} of {n_new} tokens are the same")
            sides = in_turn(
                {k: (lambda child=child: n_new / child.ask()["seconds"]) for k, child in children.items()},  # type: ignore[misc]
                setting.repeats,
            )
        figures[f"{precision}: ours over theirs"] = _figure(sides, agreed[precision], n_new)
    extra = {"prompt": PROMPT, "new": n_new, "same_tokens": agreed}
    return Measured(figures, str(threads), extra)


def _figure(sides: Mapping[str, Sample], same: int, n_new: int) -> Figure:
    note = (
        f"new tokens/s at batch 1, a prompt of {PROMPT} and {n_new} new ones; the first {same} are the same"
    )
    return Figure(sides[OURS].median / sides[THEIRS].median, "x", sides, (">=", TARGET), note)


def agreement(precision: str, ours: list[int], theirs: list[int], gaps: list[float]) -> int:
    """How many tokens are the same before the first that is not.

    `gaps`: how far the logit of each token of theirs lies below our largest, after the same text. Raises RuntimeError
    when the sides do not compute the same.
    """
    pairs = zip(ours, theirs, strict=True)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(ours))
    if same < len(ours) and (precision == "fp32" or not max(gaps) <= NEAR):
        raise RuntimeError(
            f"{precision}: the texts part at new token {same + 1} ({ours[same]} against {theirs[same]}), and after the "
            f"same text a token of theirs lies {max(gaps):.3g} below our likeliest: these are not the same models, "
            "their speeds say nothing"
        )
    return same


def serve(
    whose: str, preset: str, precision: str, n_new: int, threads: int
) -> Generator[dict[str, Any], Any, None]:
    """One side in its process: the new tokens first, then the seconds of the same call, as often as asked.

    Ours, asked with {"text": new tokens of theirs}, answers their `gaps` (see `agreement`).
    """
    import torch

    from models import build, generate, to_hf
    from models import preset as named

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    # Embeddings wide enough that the likeliest token is clearly so, and not always the last one again.
    config = named(preset, init={"std": None})
    model = build(config, seed=0).eval()
    prompt_BT = torch.randint(0, config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    if whose == OURS:
        model.to(dtype)

        def decode() -> torch.Tensor:
            return generate(model, prompt_BT, max_new_tokens=n_new, temperature=0)
    else:
        theirs = to_hf(model)
        for (
            parameter
        ) in theirs.parameters():  # not `.to`: as when loaded in bf16, its rotary frequencies stay fp32
            parameter.data = parameter.data.to(dtype)
        mask_BT = torch.ones_like(prompt_BT)

        def decode() -> torch.Tensor:
            found: torch.Tensor = theirs.generate(
                prompt_BT, attention_mask=mask_BT, max_new_tokens=n_new, do_sample=False, pad_token_id=0
            )
            return found

    tokens: list[int] = decode()[0, PROMPT:].tolist()
    request = yield {"tokens": tokens}
    while True:
        if request is None:
            request = yield {"seconds": timed(decode)}
        else:
            request = yield {"gaps": gaps(model, prompt_BT, request["text"])}


def gaps(model: CausalLM, prompt_BT: Tensor, text: list[int]) -> list[float]:
    """By how much each token's logit lies below the largest, the tokens before it given."""
    import torch

    text_BT = torch.tensor([text])
    with torch.no_grad():
        logits_BTN = (
            model(torch.cat((prompt_BT, text_BT), dim=1)).logits[:, prompt_BT.shape[1] - 1 : -1].float()
        )
    chosen_BT = logits_BTN.gather(-1, text_BT.unsqueeze(-1)).squeeze(-1)
    found: list[float] = (logits_BTN.amax(-1) - chosen_BT)[0].tolist()
    return found
