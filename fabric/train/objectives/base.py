"""What every training objective declares: the model it trains, what is asked of a row of tokens, and the loss.

Shapes: B rows, T tokens a row (a row of the token cache holds T + 1), V ids of the tokenizer.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from models.parts import Part

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from fabric.data.config import DataConfig
    from fabric.data.examples.base import Asks
    from models import ModelConfig


# The objective for what examples ask.
BY_ASKS = {"ids": "answers", "class": "classify", "number": "regress", "tags": "tag", "span": "span"}


class ObjectiveConfig(Part):
    """Base of the files in `fabric/train/objectives/`.

    `CAUSAL`: whether the model is a decoder (else an encoder). `IS_LIKELIHOOD`: whether the loss is that of the text
    itself, so that perplexity and bits per byte mean something. `EXTRA_IDS`: ids the model needs beside the
    tokenizer's, from V on.
    `ROWS`: what it is trained on, windows of a "text" or whole labelled "examples"; `ASKS`: what the targets of these
    are. `KEEPS_LM_HEAD`: whether what is trained is a language model, which can be asked as one. `SKIPS_PADDING`:
    whether rows are cut to the longest of their batch, so that fewer positions are computed than are counted.
    """

    CAUSAL: ClassVar[bool]
    IS_LIKELIHOOD: ClassVar[bool]
    EXTRA_IDS: ClassVar[int] = 0
    ROWS: ClassVar[Literal["text", "examples"]] = "text"
    ASKS: ClassVar[Asks] = "ids"
    KEEPS_LM_HEAD: ClassVar[bool] = True
    SKIPS_PADDING: ClassVar[bool] = False

    def for_data(self, data: DataConfig) -> ObjectiveConfig:
        """The objective with what the data decides. Raises ValueError as `check_data`."""
        self.check_data(data)
        return self

    def check_data(self, data: DataConfig) -> None:
        """Raise ValueError for rows that this objective does not take."""
        if self.ROWS == "examples" and data.examples is None:
            raise ValueError(
                f"objective {self.kind} reads labelled examples, and data has a text; give data.examples (and no "
                "corpus), or leave train.objective out"
            )
        if self.ROWS == "text" and data.examples is not None:
            raise ValueError(
                f"objective {self.kind} reads windows of a text, and data.examples gives examples of kind "
                f"{data.examples.kind}; set train.objective to {{kind: {BY_ASKS[data.examples.asks]}}}, or give a "
                "corpus in place of examples"
            )
        if data.examples is not None and data.examples.asks != self.ASKS:
            raise ValueError(
                f"objective {self.kind} is asked for {self.ASKS}, and examples of kind {data.examples.kind} ask for "
                f"{data.examples.asks}; set train.objective to {{kind: {BY_ASKS[data.examples.asks]}}}"
            )

    def check_model(self, model: ModelConfig) -> None:
        """Raise ValueError for a model that this objective cannot train."""
        if model.causal == self.CAUSAL:
            return
        if model.causal:
            raise ValueError(
                f"objective {self.kind} trains encoders, and model.causal is true: a token would be predicted from "
                "one side only; set model.causal to false"
            )
        raise ValueError(
            "causal=False: a model whose tokens see the ones they are to predict cannot be given a language-model "
            "loss; leave causal at true, or take objective: {kind: denoise}"
        )

    def build(self, model: ModelConfig, seed: int, device: str | None = None) -> nn.Module:
        """The module that is trained, with its initial parameters. Raises ValueError as `check_model`."""
        import models

        self.check_model(model)
        return self.around(models.build(model, seed, device), seed)

    def around(self, trunk: Any, seed: int) -> nn.Module:
        """The module that is trained, on a model that is there; it draws what it adds."""
        module: nn.Module = trunk
        return module

    @abstractmethod
    def n_targets(self, seq_len: int) -> int:
        """Tokens of a row that are predicted: what a row weighs in the loss."""

    def most_targets(self, seq_len: int) -> int:
        """The most positions of a row whose logits are computed."""
        return self.n_targets(seq_len)

    def random_rows(self, n_rows: int, seq_len: int, n_ids: int, n_asked: float | None = None) -> np.ndarray:
        """Rows of random ids for `examples`, the same every time: what speed is measured on."""
        import numpy as np

        return np.random.default_rng(0).integers(0, n_ids, (n_rows, seq_len + 1))

    @abstractmethod
    def flops_per_token(self, model: ModelConfig, seq_len: int, n_asked: float | None = None) -> float:
        """Forward FLOPs a token read, output matrix included; a training step is three times that.

        `n_asked`: the data's, `DataConfig.n_asked`; an objective that itself says what is asked has no use for it.
        """

    @abstractmethod
    def examples(
        self, rows_BT1: np.ndarray, *, seed: int, step: int, n_ids: int, first_row: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the model reads, ids_BT, and what it must predict, targets_BT (-100: nothing), of a cache's rows; int64.

        A pure function of the tokens, (seed, step) and each row's number in the global batch, which counts from
        `first_row`. `n_ids` is V.
        """

    @staticmethod
    @abstractmethod
    def sum_nll(model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Summed negative log-likelihood of the targets in nats, an fp32 scalar."""

    @staticmethod
    @abstractmethod
    def nll(model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Negative log-likelihood of each target, fp32, any shape; without gradient."""
