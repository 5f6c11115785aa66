"""Option scoring: templates, examples and scores, from rows in the forms their publishers use."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

from fabric.data.rows import TaskDataError, read_table
from fabric.data.tokenizer import ByteTokenizer
from fabric.evaluate.options import METRICS, OptionTask, is_right
from fabric.evaluate.scores import of_confusion
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import named, task, tasks
from models import ModelConfig, build

REAL = os.environ.get("FABRIC_DATA")
FILES = {
    "sst2/dev.tsv": "sentence\tlabel\nit 's \"fun \t1\na bore . \t0\n",
    "sst2/train.tsv": "sentence\tlabel\nfine \t1\npoor \t0\n",
    "cola/in_domain_dev.tsv": "gj04\t1\t\tShe ran.\ngj04\t0\t*\tRan she the.\n",
    "rte/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA dog ran.\tAn animal ran.\tentailment\n",
    "cb/val.jsonl": '{"premise": "It may rain.", "hypothesis": "it rains", "label": "neutral", "idx": 0}\n',
    "boolq/val.jsonl": '{"question": "is it wet", "passage": "Rain is wet.", "label": true, "idx": 0}\n'
    '{"question": "Is it dry?", "passage": "Rain is wet.", "label": false, "idx": 1}\n',
    "wic/val.jsonl": '{"word": "run", "sentence1": "A run.", "sentence2": "We run.", "label": false}\n',
    "copa/val.jsonl": '{"premise": "It fell.", "choice1": "I saw it.", "choice2": "The cup broke.", '
    '"question": "effect", "label": 1}\n'
    '{"premise": "It broke.", "choice1": "It fell.", "choice2": "It rose.", "question": "cause", "label": 0}\n',
    "mrpc/msr_paraphrase_test.txt": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tA b.\tB a.\n",
    "blimp/one.jsonl": '{"sentence_good": "She runs.", "sentence_bad": "She run.", "UID": "one"}\n',
    "blimp/two.jsonl": '{"sentence_good": "They run.", "sentence_bad": "They runs.", "UID": "two"}\n' * 3,
}
# The first items: prompt, options, the answer's number.
EXPECTED = {
    "sst2": ("it 's \"fun It was", (" terrible", " great"), 1),
    "cola": ("She ran. This is", (" incorrect", " correct"), 1),
    "rte": ('A dog ran.\nDoes this mean that "An animal ran." is true? Yes or No?\n', ("Yes", "No"), 0),
    "cb": (
        'Suppose It may rain. Can we infer that "it rains"? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        2,
    ),
    "boolq": ("Rain is wet. Is it wet?\n", ("Yes", "No"), 0),
    "wic": (
        'Does the word "run" have the same meaning in these two sentences? Yes, No?\nA run.\nWe run.\n',
        ("No", "Yes"),
        0,
    ),
    "copa": ("It fell so ", ("I saw it.", "the cup broke."), 1),
    "mrpc": ('A b.\nDoes this mean the same as "B a."? Yes or No?\n', ("No", "Yes"), 1),
    "blimp": ("", ("She runs.", "She run."), 0),
    "qqp": (
        'How do I learn to swim?\nDoes this ask the same as "What is the best way to learn swimming?"? Yes or No?\n',
        ("No", "Yes"),
        1,
    ),
    "qnli": (
        'The painter was born in a village near Turin in 1820.\nDoes this answer the question "Where was the painter '
        'born?"? Yes or No?\n',
        ("Yes", "No"),
        0,
    ),
    "mnli": (
        'Suppose The children are playing football in the park. Can we infer that "Children are outside."? Yes, Maybe, '
        "or No?\n",
        ("Yes", "Maybe", "No"),
        0,
    ),
    "mnli_mismatched": (
        'Suppose The children are playing football in the park. Can we infer that "Children are outside."? Yes, Maybe, '
        "or No?\n",
        ("Yes", "Maybe", "No"),
        0,
    ),
    "wsc": (
        "The trophy did not fit into the bag because it was too large.\nIn the previous sentence, does the pronoun "
        '"it" refer to The trophy? Yes or No?\n',
        ("No", "Yes"),
        1,
    ),
    "multirc": (
        "The ferry left at noon with forty passengers. A storm forced it to turn back, and everyone was given tea at "
        'the harbour.\nQuestion: Why did the ferry turn back?\nI found this answer "Because of a storm". Is that '
        "correct? Yes or No?\n",
        ("No", "Yes"),
        1,
    ),
    "record": (
        "Rosa Lind opened a bakery in Lisbon last year. The shop was soon known for its rye bread, and Karl Boe wrote "
        "about it.\n- Rosa Lind came to Lisbon as a student\n- Karl Boe praised the rye bread\n-",
        tuple(
            f" The town council of {e} gave the bakery a prize." for e in ("Rosa Lind", "Lisbon", "Karl Boe")
        ),
        1,
    ),
}
INVENTED = Path(__file__).parent / "rows"  # in the form of the releases; none of these has run on real data
NEVER_ON_REAL_DATA = {"qqp", "qnli", "mnli", "mnli_mismatched", "wsc", "multirc", "record"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    shutil.copytree(INVENTED, root, dirs_exist_ok=True)
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A tiny model over bytes."""
    body = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "max_seq_len": 280, "init": {"std": 0.3}}
    config = {
        **body,
        "mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2},
        "ffn": {"kind": "swiglu", "d_ff": 48},
    }
    model, tokenizer = build(ModelConfig.model_validate(config)).eval(), ByteTokenizer()
    trained = SimpleNamespace(
        model=model,
        config=model.config,
        tokenizer=tokenizer,
        hf_tokenizer=None,
        prompt_ids=tokenizer.encode,
    )
    return Subject.of(trained)


def loaded(chosen, folder):
    """A task's items."""
    return chosen.load(Asked(folder))


def scored(chosen, items, subject):
    """What a subject makes of them."""
    return chosen.run(chosen.prepare(items, subject), subject)


def test_every_task_has_a_case_here():
    assert set(EXPECTED) == {name for name, found in tasks().items() if isinstance(found, OptionTask)}


@pytest.mark.parametrize("name", EXPECTED)
def test_templates(folder, name):
    item = loaded(task(name), folder)[0]
    prompt, options, answer = EXPECTED[name]
    assert (item.prompt, item.options, item.answers) == (prompt, options, (answer,))


@pytest.mark.parametrize("name", sorted(NEVER_ON_REAL_DATA))
def test_invented_rows_have_every_answer_and_the_hub_s_names(folder, name):
    """Read as the hub has them they are the same items, and lm-evaluation-harness's templates find their fields."""
    chosen = task(name)
    items = loaded(chosen, folder)
    assert len(items) >= 20
    assert {a for i in items for a in i.answers} == set(range(len(items[0].options)))
    rows = read_table(chosen.rows, folder)
    flat = folder / f"flat-{name}"
    place = flat / chosen.rows.files[0].replace(".tsv", ".jsonl")
    place.parent.mkdir(parents=True)
    place.write_text("".join(json.dumps(dict(r.fields)) + "\n" for r in rows))
    again = replace(chosen, rows=replace(chosen.rows, files=(str(place.relative_to(flat)),)))
    assert [replace(i, where="") for i in loaded(again, flat)] == [replace(i, where="") for i in items]
    lm_eval = pytest.importorskip("lm_eval")
    (root,) = lm_eval.__path__
    kind, file = ("super_glue", "default") if name in ("wsc", "multirc", "record") else ("glue", "default")
    folder_of = "mnli" if name.startswith("mnli") else name
    files = sorted((Path(root) / "tasks" / kind / folder_of).glob("*.yaml"))
    text = next(f for f in files if f.stem in (file, name)).read_text()
    named = set(re.findall(r"{{\s*(\w+)", text)) | set(re.findall(r"doc_to_target: (\w+)", text))
    assert named - {"label"} <= set(rows[0].fields) | {"answer_choices"}, named
    for module in ("preprocess_wsc", "util"):
        source = Path(root) / "tasks" / kind / folder_of / f"{module}.py"
        if source.is_file():
            asked = set(re.findall(r"(?:doc|x)\[\"(\w+)\"\]", source.read_text()))
            assert asked - {"idx"} <= set(rows[0].fields), asked


def test_several_answers_may_be_right(folder, tmp_path):
    row = json.loads((INVENTED / "record" / "val.jsonl").read_text().splitlines()[0])
    row["qas"][0]["answers"].append({"start": 0, "end": 8, "text": "Rosa Lind"})
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "val.jsonl").write_text(json.dumps(row))
    (item,) = loaded(task("record"), tmp_path)
    assert item.answers == (1, 0)


def test_an_entity_is_right_in_part(tmp_path, subject):
    """ReCoRD's F1 is the harness's: the words of the chosen entity, of the answer that is nearest."""
    official = pytest.importorskip("lm_eval.tasks.super_glue.record.t5_utils")
    entities, answers = (
        ["Rosa Lind", "Lind", "the Lisbon", "Karl Boe"],
        ["Lind", "Rosa Lind of Porto", "Lisbon"],
    )
    row = {"passage": "Rosa Lind ran.", "query": "@placeholder won.", "entities": [*entities, "Lisbon"]}
    row["entities"].append("Rosa Lind of Porto")
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "val.jsonl").write_text(json.dumps({**row, "answers": answers}) + "\n")
    chosen = task("record")
    items = loaded(chosen, tmp_path)
    (found,) = scored(chosen, items, subject).outcomes
    expected = [official.squad_f1_agg([(e, f"0_{a}") for a in answers]) for e in row["entities"]]
    assert found["worth"] == pytest.approx(expected)
    assert found["worth"][:4] == pytest.approx([2 / 3, 1, 1, 0])
    each = [{**found, "guess": g, "answer": g if g in items[0].answers else 1} for g in range(6)]
    scores = chosen.scores(each)
    assert scores["f1"].value == scores["f1"].chance == pytest.approx(np.mean(expected))
    assert scores["accuracy"].value == 3 / 6
    assert scores["f1"].low < scores["f1"].value < scores["f1"].high
    assert scores["f1"].is_chance
    spread = 1.96 * np.sqrt(6 * np.var(expected)) / 6
    assert scores["f1"].chance_high - scores["f1"].chance == pytest.approx(spread, rel=1e-3)
    better = [{**found, "guess": 1, "answer": 1}] * 6
    assert chosen.differences(each, better)["f1"].value == pytest.approx(1 - np.mean(expected))
    with pytest.raises(TaskDataError, match="val.jsonl:1: 6 options are worth"):
        loaded(replace(chosen, worth=lambda row: [1.0]), tmp_path)


def test_a_question_s_answers_are_judged_together(folder, subject):
    chosen = task("multirc")
    found = scored(chosen, loaded(chosen, folder), subject).outcomes
    scores = chosen.scores(found)
    questions = {o["group"] for o in found}
    whole = [all(is_right(o) for o in found if o["group"] == q) for q in questions]
    assert scores["exact"].n == len(questions) == 8
    assert scores["exact"].value == sum(whole) / 8
    assert scores["accuracy"].n == len(found)


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - NEVER_ON_REAL_DATA))
@pytest.mark.skipif(REAL is None, reason="no FABRIC_DATA")
def test_real_data_is_read(name):
    """As many items as the published split (BLiMP: 100 of each paradigm's 1,000), and every answer occurs."""
    items = loaded(task(name), Path(REAL))
    counts = {
        "sst2": 872,
        "cola": 527,
        "rte": 277,
        "cb": 56,
        "boolq": 3270,
        "wic": 638,
        "copa": 100,
        "mrpc": 1725,
    }
    assert len(items) == counts.get(name, 6700)
    answers = {a for i in items for a in i.answers}
    assert answers == ({0} if name == "blimp" else set(range(len(items[0].options))))
    assert len({i.group for i in items}) == (67 if name == "blimp" else 1)


def by_itself(subject, prompt, option):
    """The log-probability of each of the option's bytes, from a forward pass of its own."""
    context = list(prompt.rstrip(" ").encode()) if prompt else [subject.first_id]
    ids = torch.tensor(list((prompt + option).encode()) if prompt else context + list(option.encode()))
    with torch.inference_mode():
        log_p_TV = subject.model(ids[None, :-1]).logits[0].double().log_softmax(-1)
    return [float(log_p_TV[t, ids[t + 1]]) for t in range(len(context) - 1, len(ids) - 1)]


@pytest.mark.parametrize("name", EXPECTED)
def test_scores_are_those_of_every_option_by_itself(folder, subject, name):
    chosen = task(name)
    items = loaded(chosen, folder)
    found = scored(chosen, items, subject)
    for item, outcome in zip(items, found.outcomes, strict=True):
        each = [by_itself(subject, item.prompt, option) for option in item.options]
        expected = [sum(e) if chosen.score == "sum" else sum(e) / len(e) for e in each]
        assert outcome["scores"] == pytest.approx(expected, abs=2e-5)
        assert outcome["guess"] == expected.index(max(expected))
    assert found.remarks == ()
    scores = chosen.scores(found.outcomes)
    assert list(scores) == list(chosen.metrics)
    right = [is_right(o) for o in found.outcomes]
    if name not in ("blimp", "cola"):
        assert scores["accuracy"].value == sum(right) / len(right)
    same = chosen.differences(found.outcomes, found.outcomes)
    assert {(d.value, d.p) for d in same.values()} == {(0.0, 1.0)}


def test_of_equal_scores_the_first_wins(folder, subject):
    same = replace(task("sst2"), options=lambda row: (" same", " same"))
    found = scored(same, loaded(same, folder), subject)
    assert [(o["guess"], o["scores"][0] == o["scores"][1]) for o in found.outcomes] == [(0, True)] * 2


def test_calibration_takes_away_the_option_after_no_content(folder, subject):
    chosen = task("sst2:calibrated=true")
    (first, *_) = items = loaded(chosen, folder)
    found = scored(chosen, items, subject).outcomes[0]
    expected = [
        sum(by_itself(subject, first.prompt, o)) - sum(by_itself(subject, " It was", o))
        for o in first.options
    ]
    assert found["scores"] == pytest.approx(expected, abs=2e-5)
    with pytest.raises(ValueError, match="task blimp: it has no prompt without content"):
        task("blimp:calibrated=true")


def test_examples_stand_before_every_prompt(folder):
    items = loaded(task("sst2:shots=2"), folder)
    heads = {i.prompt.removesuffix(p.prompt) for i, p in zip(items, loaded(task("sst2"), folder))}
    (head,) = heads
    assert sorted(head.strip().split("\n\n")) == ["fine It was great", "poor It was terrible"]
    assert items == loaded(task("sst2:shots=2"), folder), "the same ones every time"
    with pytest.raises(TaskDataError, match="sst2 has 2 training rows, 3 examples"):
        loaded(task("sst2:shots=3"), folder)
    with pytest.raises(ValueError, match="task blimp: it has no training rows"):
        task("blimp:shots=1")


def test_a_task_s_settings_are_read_as_they_are_written():
    assert named("sst2, boolq:shots=4,calibrated=true ,copa,") == [
        "sst2",
        "boolq:shots=4,calibrated=true",
        "copa",
    ]
    chosen = task("boolq:shots=4, calibrated=true")
    assert (chosen.shots, chosen.calibrated, chosen.label) == (4, True, "boolq:shots=4,calibrated=true")
    assert task(chosen.label) == chosen
    assert task("boolq").label == "boolq"
    for text, said in {
        "boolq:shot=4": r"has no setting 'shot' \(it has: shots, calibrated\); did you mean 'shots'",
        "boolq:name=x": "has no setting 'name'",
        "boolq:shots=-1": "shots='-1': Input should be greater than or equal to 0",
        "boolq:shots=four": "shots='four': Input should be a valid integer",
        "boolq:shots": "'shots' is no setting",
        "boolq:": "'' is no setting",
        "boolq:shots=1,shots=2": "'shots=2' is no setting, or the second",
    }.items():
        with pytest.raises(ValueError, match=said):
            task(text)


def test_a_context_loses_its_beginning_and_an_option_nothing(folder, subject, tmp_path):
    chosen = task("sst2")
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_text("sentence\tlabel\n" + "x" * 300 + "\t1\n")
    items = loaded(chosen, tmp_path)
    found = scored(chosen, items, subject)
    assert found.remarks == ("1 contexts lost their beginning: the model takes no more",)
    expected = [by_itself(subject, items[0].prompt[-(281 - len(o)) :], o) for o in items[0].options]
    assert found.outcomes[0]["scores"] == pytest.approx([sum(e) / len(e) for e in expected], abs=2e-5)


BROKEN = [
    ("sst2", "sst2/dev.tsv", "sentence\tlabel\nfine\t2\n", r"dev.tsv:2: label = '2' is no label.*'0', '1'"),
    ("sst2", "sst2/dev.tsv", "sentence\tlabel\nfine\n", r"dev.tsv:2: 1 columns where there are 2"),
    ("sst2", "sst2/dev.tsv", "sentense\tlabel\nfine\t1\n", r"no field 'sentence'.*is 'sentense' meant"),
    ("sst2", "sst2/dev.tsv", "sentence\tlabel\n", r"dev.tsv holds no rows"),
    ("boolq", "boolq/val.jsonl", "{}\n{", r"val.jsonl:2: not JSON"),
    ("boolq", "boolq/val.jsonl", "[1]\n", r"val.jsonl:1: a row is a JSON object, not list"),
    ("boolq", "boolq/val.jsonl", '{"question": 3, "passage": "p", "label": true}', r"question = 3 is no text"),
    ("record", "record/val.jsonl", '{"passage": {"text": "a b", "entities": [{"start": 2, "end": 9}]}, "qas": []}',
     r"val.jsonl:1 passage entities\[0\]: characters 2 to 9 of a text of 3"),
    ("record", "record/val.jsonl", '{"passage": "p", "query": "q", "entities": ["a"], "answers": ["b"]}',
     r"val.jsonl:1: the answer 'b' is none of the passage's entities"),
    ("multirc", "multirc/val.jsonl", '{"passage": {"text": "a", "questions": 3}}', r"questions is no list of objects"),
    ("wsc", "wsc/val.jsonl", '{"text": "a", "target": 3}', r"val.jsonl:1: target = 3 is no object"),
    ("blimp", "blimp/a.jsonl", '{"sentence_good": "", "sentence_bad": "b", "UID": "u"}', r"option 0 is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "text", "said"), BROKEN)
def test_bad_rows_are_told_with_file_and_line(tmp_path, name, file, text, said):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(text)
    with pytest.raises(TaskDataError, match=said):
        loaded(task(name), tmp_path)


def test_unknown_tasks_and_missing_data_are_told(tmp_path):
    with pytest.raises(ValueError, match="no task is named 'sst'; did you mean 'sst2'"):
        task("sst")
    with pytest.raises(
        TaskDataError, match=r"its data is not here \(tried: .*sst2/dev.tsv, .*SST-2/dev.tsv\)"
    ):
        loaded(task("sst2"), tmp_path)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
@pytest.mark.filterwarnings("ignore:A single label")
def test_metrics_are_scikit_learns(pairs):
    answers, guesses = [a for a, _ in pairs], [g for _, g in pairs]
    table = confusion_matrix(answers, guesses, labels=[0, 1, 2])
    assert METRICS["matthews"](table) == pytest.approx(matthews_corrcoef(answers, guesses), abs=1e-12)
    each = f1_score(answers, guesses, labels=[0, 1, 2], average=None, zero_division=0)
    assert METRICS["f1"](table) == pytest.approx(each[1])
    assert METRICS["f1_macro"](table) == pytest.approx(each.mean())


def test_the_specs_vectors():
    answers, guesses = [1, 1, 1, 1, 0, 0, 1, 0, 1, 1], [1, 1, 0, 1, 0, 1, 1, 0, 1, 1]
    table = confusion_matrix(answers, guesses)
    assert METRICS["matthews"](table) == pytest.approx(0.5238, abs=1e-4)
    assert METRICS["f1"](table) == pytest.approx(0.8571, abs=1e-4)
    constant = confusion_matrix(answers, [1] * 10)
    assert METRICS["matthews"](constant) == 0.0
    assert METRICS["f1"](constant) == pytest.approx(0.8235, abs=1e-4)


def test_a_table_s_interval_is_a_bootstrap_over_items():
    """Of accuracy it is near the normal one."""
    table = np.array([[40, 10], [20, 30]])
    found = of_confusion(table, lambda c: c.trace(axis1=-2, axis2=-1) / c.sum((-2, -1)))
    half = 1.96 * (0.7 * 0.3 / 100) ** 0.5
    assert found.value == 0.7
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.015)
    assert of_confusion(np.array([[1, 0], [0, 0]]), METRICS["f1"]).low is None
    with pytest.raises(ValueError, match="no items"):
        of_confusion(np.zeros((2, 2), int), METRICS["f1"])


def test_the_verb_s_function_reads_data_before_it_loads_a_model(folder, tmp_path):
    import fabric

    with pytest.raises(ValueError, match="no task is named"):
        fabric.measure(tmp_path / "nothing", ["nope"], data=folder)
    with pytest.raises(ValueError, match="its data is not here"):
        fabric.measure(tmp_path / "nothing", ["sst2"], data=tmp_path)
    with pytest.raises(ValueError, match="is neither a trial"):
        fabric.measure(tmp_path / "nothing", ["sst2"], data=folder)


def test_an_option_that_does_not_fit_is_told_before_the_weights_are_read(folder, subject):
    class Unread:
        config = subject.trained.config.replace(max_seq_len=6)
        tokenizer, hf_tokenizer = subject.trained.tokenizer, None
        prompt_ids = staticmethod(subject.trained.tokenizer.encode)

        @property
        def model(self):
            raise AssertionError("the weights were read")

    chosen = task("sst2")
    with pytest.raises(
        TaskDataError, match=r"dev.tsv:2: an option of 9 tokens does not fit: the model takes 6"
    ):
        chosen.prepare(loaded(chosen, folder), Subject.of(Unread()))
