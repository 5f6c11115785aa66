"""Cross entropy of rows, written out: the definition the other backends are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_(logits_CV: Tensor, targets_C: Tensor, gradient: bool, ignored: int) -> Tensor:
    """log sum exp(z) - z[t] of every row z; with `gradient`, z becomes softmax(z) - onehot(t)."""
    wide_CV = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
    nll_C = F.cross_entropy(wide_CV, targets_C, ignore_index=ignored, reduction="none")
    if gradient:
        scored_C1 = (targets_C != ignored).unsqueeze(-1)
        onehot_CV = F.one_hot(targets_C.clamp(min=0), logits_CV.shape[-1])
        logits_CV.copy_((wide_CV.softmax(-1) - onehot_CV) * scored_C1)
    return nll_C
