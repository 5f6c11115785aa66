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
# bf16 rounds each product: at the first two nearly equal logits the texts part. What must then hold: our logits are no
# further from those of the same weights in fp32 than theirs are.
NO_FURTHER = 1.25
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
            ours, theirs = (children[k].first["tokens"] for k in (OURS, THEIRS))
            off = {k: child.ask({"text": theirs})["error"] for k, child in children.items()}
            agreed[precision] = agreement(precision, ours, theirs, off[OURS], off[THEIRS])
            setting.say(
                f"{precision}: {agreed[precision]} of {n_new} tokens are the same; logits are off by {off[OURS]:.2g} "
                f"(theirs {off[THEIRS]:.2g})"
            )
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


def agreement(
    precision: str, ours: list[int], theirs: list[int], our_error: float, their_error: float
) -> int:
    """How many tokens are the same before the first that is not.

    The errors are of both sides' logits after the same text, see `error`. Raises RuntimeError when the sides do not
    compute the same.
    """
    pairs = zip(ours, theirs, strict=True)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(ours))
    if same < len(ours) and (precision == "fp32" or not our_error <= NO_FURTHER * their_error):
        raise RuntimeError(
            f"{precision}: the texts part at new token {same + 1} ({ours[same]} against {theirs[same]}), and after the "
            f"same text our logits are {our_error:.3g} off, theirs {their_error:.3g}: these are not the same models, "
            "their speeds say nothing"
        )
    return same


def serve(
    whose: str, preset: str, precision: str, n_new: int, threads: int
) -> Generator[dict[str, Any], Any, None]:
    """One side in its process: the new tokens first, then the seconds of the same call, as often as asked.

    Asked with {"text": new tokens of theirs}, a side answers its `error` over prompt and text.
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
    model.to(dtype)
    if whose == OURS:

        def decode() -> torch.Tensor:
            return generate(model, prompt_BT, max_new_tokens=n_new, temperature=0)
    else:
        theirs = to_hf(model)
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
            text_BT = torch.cat((prompt_BT, torch.tensor([request["text"]])), dim=1)
            request = yield {"error": error(model if whose == OURS else theirs, model, text_BT)}


def error(side: Any, model: CausalLM, text_BT: Tensor) -> float:
    """How far a side's logits are from those of `model` (the weights it has) in fp32: root mean square."""
    import copy

    import torch

    with torch.no_grad():
        exact_BTN = copy.deepcopy(model).float()(text_BT).logits
        found: float = (side(text_BT).logits.float() - exact_BTN).square().mean().sqrt().item()
    return found
