"""Generated examples in every form, each with rows that hold it."""

from fabric.data import DataConfig

# A kind in the forms that its required fields do not show; each with rows that hold it.
CASES = {
    "mqar": ({"kind": "mqar", "n_pairs": 4, "vocab_size": 64}, 32),
    "mqar_zeros": ({"kind": "mqar", "n_pairs": 4, "vocab_size": 64, "random_non_queries": False}, 32),
    "mqar_full": ({"kind": "mqar", "n_pairs": 6, "vocab_size": 40, "power_a": 1.0}, 24),
    "remember": ({"kind": "associative_retrieval", "n_pairs": 5}, 26),
    "remember_long": ({"kind": "associative_retrieval", "n_pairs": 4, "key_size": 2, "value_size": 3}, 34),
    "rewrite": ({"kind": "associative_retrieval", "n_pairs": 9, "task": "rewrite"}, 40),
    "copy": ({"kind": "copy", "length": 8, "n_symbols": 10}, 16),
    "reverse": ({"kind": "copy", "length": 8, "reverse": True}, 20),
    "induction": ({"kind": "induction"}, 20),
    "marker": ({"kind": "marker_memory", "n_markers": 3, "separation": 7}, 30),
    "marker_many": ({"kind": "marker_memory", "n_markers": 3, "n_distractors": 4, "n_queries": 2}, 32),
    "sum": ({"kind": "multi_hop", "n_hops": 2}, 20),
    "chain": ({"kind": "multi_hop", "n_hops": 3, "question": "chain"}, 40),
    "retrieval": ({"kind": "multi_hop", "n_hops": 1, "n_others": 7, "question": "chain"}, 27),
    "arithmetic": ({"kind": "pattern_reasoning", "n_predict": 3, "n_examples": 1}, 16),
    "geometric": ({"kind": "pattern_reasoning", "rule": "geometric"}, 8),
    "fibonacci": ({"kind": "pattern_reasoning", "rule": "fibonacci", "n_predict": 2}, 7),
    "affine": ({"kind": "pattern_reasoning", "rule": "affine", "n_examples": 2}, 20),
    "periodic": ({"kind": "pattern_reasoning", "rule": "periodic", "period": 3, "n_predict": 4}, 12),
    "interleaved": (
        {
            "kind": "pattern_reasoning",
            "rule": "interleaved",
            "families": ["geometric", "affine"],
            "n_shown": 8,
            "n_predict": 3,
            "n_examples": 1,
        },
        24,
    ),
    "always_valid": ({"kind": "pattern_reasoning", "rule": "affine", "n_shown": 3, "invalid_share": 0}, 8),
}
FEW = {"n_train": 300, "n_validation": 60, "n_test": 80}


def config_of(name, **changes):
    body, seq_len = CASES[name]
    return DataConfig.model_validate({"examples": {**body, **FEW, **changes}, "seq_len": seq_len})


def many(name, n=3000):
    """(examples, ids, targets) of a larger split."""
    config = config_of(name, n_train=n)
    return config.examples, *config.examples.build("train", config.seq_len)
