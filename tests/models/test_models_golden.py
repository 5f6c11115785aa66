"""The numbers of every part are fixed: five steps of training, kept in golden.json beside the part's REVISION.

A change that moves them bumps the part's REVISION (it enters the identity of trials) and rewrites the file:
`PYTHONPATH=. python tests/models/test_models_golden.py`, from the repository's root.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models_cases import FFNS, MIXERS, config_of, example, ids_of

from models import build

GOLDEN = Path(__file__).with_name("golden.json")
CASES = {
    **{f"mixer/{kind}": (part, {"mixer": example(part)}) for kind, part in MIXERS.items()},
    "short_conv": (MIXERS["mha"], {"mixer": example(MIXERS["mha"], short_conv=3)}),
    **{
        f"ffn/{kind}": (part, {"mixer": example(MIXERS["mha"]), "ffn": example(part)})
        for kind, part in FFNS.items()
    },
}


def five_losses(changes):
    torch.set_num_threads(1)
    model = build(config_of(**changes), seed=3)
    ids = ids_of(4, 25, seed=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        logits = model(ids[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_kept(name):
    part, changes = CASES[name]
    kept = json.loads(GOLDEN.read_text())
    assert name in kept, f"{name} is new: run python {Path(__file__).name} to keep its losses"
    assert kept[name]["revision"] == part.REVISION, f"{name}: REVISION was bumped, rewrite golden.json"
    assert five_losses(changes) == pytest.approx(kept[name]["losses"], rel=1e-6), (
        f"the numbers of {name} changed: bump REVISION of {part.__name__} and rewrite golden.json"
    )


def test_no_golden_entry_without_a_part():
    assert json.loads(GOLDEN.read_text()).keys() == CASES.keys()


if __name__ == "__main__":
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    fresh = {}
    for name, (part, changes) in CASES.items():
        fresh[name] = {"revision": part.REVISION, "losses": five_losses(changes)}
        old = kept.get(name)
        if (
            old
            and old["revision"] == part.REVISION
            and old["losses"] != pytest.approx(fresh[name]["losses"], rel=1e-6)
        ):
            raise SystemExit(f"the numbers of {name} changed: bump REVISION of {part.__name__} first")
    GOLDEN.write_text(json.dumps(fresh, indent=1) + "\n")
