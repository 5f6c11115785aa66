"""Which folder the parts of a job's key come from: `mixer` -> models/mixers, and so on."""

from __future__ import annotations

from functools import cache

from models.parts import Part, parts_in


@cache
def families() -> dict[str, tuple[str, type[Part]]]:
    """{key in the job file: (package, base config class)} for every family of parts."""
    from fabric.data.config import CorpusConfig, ExamplesConfig, TokenizerConfig
    from fabric.planning.stopping.base import StoppingRule
    from fabric.train.config import OptimizerConfig, ScheduleConfig
    from fabric.train.objectives.base import ObjectiveConfig
    from models.config import FFNConfig, MixerConfig

    return {
        "mixer": ("models.mixers", MixerConfig),
        "ffn": ("models.ffns", FFNConfig),
        "optimizer": ("fabric.train.optimizers", OptimizerConfig),
        "schedule": ("fabric.train.schedules", ScheduleConfig),
        "objective": ("fabric.train.objectives", ObjectiveConfig),
        "examples": ("fabric.data.examples", ExamplesConfig),
        "corpus": ("fabric.data.corpora", CorpusConfig),
        "tokenizer": ("fabric.data.tokenizers", TokenizerConfig),
        "scheduler": ("fabric.planning.stopping", StoppingRule),
    }


def switch_kind(key: str, old: dict[str, object], kind: object) -> dict[str, object]:
    """What a part keeps when only its kind changes: the fields that the new kind has too."""
    if key not in families():
        return old
    new = parts_in(*families()[key]).get(str(kind))
    return old if new is None else {k: v for k, v in old.items() if k in new.model_fields}
