"""MS MARCO: rows in both forms, every mistake told; ROUGE-L and BLEU by their libraries, ranks by definition."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data.rows import TaskDataError
from fabric.data.tokenizer import ByteTokenizer
from fabric.evaluate import overlap
from fabric.evaluate.ranking import guessed, rank_of, reciprocal
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task
from fabric.evaluate.tasks.ms_marco import answer_of, write_predictions
from models import ModelConfig, build

INVENTED = Path(__file__).parent / "rows"
ROWS = [json.loads(line) for line in (INVENTED / "ms_marco" / "dev.jsonl").read_text().splitlines()]
WORDS = st.lists(st.sampled_from("the a cat sat on mat in Paris . , 18".split()), min_size=1, max_size=9)  # noqa: SIM905
TEXTS = WORDS.map(" ".join)


@pytest.fixture(scope="module", autouse=True)
def _installed():
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")


def folder_of(tmp_path: Path, *rows: dict) -> Path:
    (tmp_path / "ms_marco").mkdir(exist_ok=True)
    (tmp_path / "ms_marco" / "dev.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


# ---- answers


def test_questions_are_read():
    items = task("ms_marco").load(Asked(INVENTED))
    assert len(items) == len(ROWS) >= 20
    assert items[0].references == ("In hollow trees and old squirrel dreys.",)
    assert items[5].references == ("",)
    assert len(items[4].references) == 2
    assert items[0].prompt.startswith(f"Passage 1: {ROWS[0]['passages']['passage_text'][0]}\nPassage 2: ")
    assert items[0].prompt.endswith(
        '\nQuestion: where does a pine marten sleep\nIf no passage answers it, answer "No Answer Present."\nAnswer:'
    )


def test_passages_as_a_list_are_the_same(tmp_path):
    """The release has a list of objects, the hub an object of lists."""
    turned = [
        {
            **r,
            "passages": [
                dict(zip(r["passages"], v, strict=True)) for v in zip(*r["passages"].values(), strict=True)
            ],
        }
        for r in ROWS
    ]
    folder = folder_of(tmp_path, *turned)
    for name in ("ms_marco", "ms_marco_ranking"):
        ours, theirs = task(name).load(Asked(folder)), task(name).load(Asked(INVENTED))
        assert [vars(i) | {"where": ""} for i in ours] == [vars(i) | {"where": ""} for i in theirs]


def test_examples_show_how_to_decline(tmp_path):
    folder = folder_of(tmp_path, ROWS[5])
    (folder / "ms_marco" / "train.jsonl").write_text(json.dumps(ROWS[5]) + "\n")
    (item,) = task("ms_marco:shots=1").load(Asked(folder))
    assert item.prompt.count("Answer: No Answer Present.\n\nPassage 1:") == 1


@pytest.mark.parametrize(
    ("text", "answer"), [(" no answer present", ""), (" Six. ", "Six."), ("No Answer Present.", "")]
)
def test_declining_is_an_empty_answer(text, answer):
    assert answer_of(text) == answer


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_scores_are_the_libraries(pairs):
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    chosen = task("ms_marco")
    outcomes = [chosen.outcome(*pair) for pair in pairs]
    scorer = RougeScorer(["rougeL"])
    expected = [max(scorer.score(r, g)["rougeL"].fmeasure for r in refs) for g, refs in pairs]
    assert [o["scores"]["rouge_l"] for o in outcomes] == pytest.approx(expected)
    streams = list(itertools.zip_longest(*(refs for _, refs in pairs)))
    declined = chosen.outcome("unasked words", [""])
    found = chosen.measures["bleu"].score([*outcomes, declined]).value
    assert found == pytest.approx(
        BLEU().corpus_score([o["extracted"]["answer"] for o in outcomes], streams).score
    )


def test_measures_and_their_intervals():
    chosen = task("ms_marco")
    pairs = [
        ("In hollow trees", ["In hollow trees and dreys."]),
        ("six holes of it", ["six holes of it", "6"]),
    ]
    pairs += [("No Answer Present.", [""]), ("Ostrand", [""]), ("No Answer Present.", ["Six"])]
    outcomes = json.loads(json.dumps([chosen.outcome(*p) for p in pairs]))
    found = chosen.scores(outcomes)
    first = 2 * 3 / (3 + 5)
    assert {n: s.value for n, s in found.items() if n != "bleu"} == pytest.approx(
        {"rouge_l": (first + 1 + 1) / 5, "has_answer_rouge_l": (first + 1) / 3, "no_answer_exact": 1 / 2}
    )
    assert next(iter(found)) == "rouge_l"
    assert 0 <= found["bleu"].low <= found["bleu"].value <= found["bleu"].high <= 100.001
    same = chosen.differences(outcomes, outcomes)
    assert {d.value for d in same.values()} == {0.0}
    assert chosen.scores(outcomes[2:4])["bleu"].value == 0, "no question has an answer"


@pytest.mark.parametrize(("library", "package"), [("rouge_score", "rouge-score"), ("sacrebleu", "sacrebleu")])
def test_without_the_libraries_they_are_named(library, package, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    overlap._scorer.cache_clear()
    overlap._bleu.cache_clear()
    with pytest.raises(ValueError, match=rf"needs {package}, .*experiment-fabric\[eval\]"):
        task("ms_marco").load(Asked(INVENTED))


def test_predictions_are_in_the_official_form(tmp_path):
    chosen = task("ms_marco")
    items = chosen.load(Asked(INVENTED, limit=6))
    texts = ["In trees é", *["words"] * 4, " No Answer Present"]
    outcomes = [chosen.outcome(text, i.references) for text, i in zip(texts, items, strict=True)]
    write_predictions(tmp_path / "to" / "predictions.jsonl", Asked(INVENTED, limit=6), outcomes)
    lines = (tmp_path / "to" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines][:1] == [{"query_id": 9000, "answers": ["In trees é"]}]
    assert json.loads(lines[-1]) == {"query_id": 9005, "answers": ["No Answer Present."]}
    with pytest.raises(ValueError, match="6 outcomes of 24 rows"):
        write_predictions(tmp_path / "no", Asked(INVENTED), outcomes)
    with pytest.raises(ValueError, match=r"dev.jsonl:1: its answers are not those of the outcome"):
        write_predictions(tmp_path / "no", Asked(INVENTED, limit=6), outcomes[::-1])
    folder = folder_of(tmp_path, {**ROWS[0], "query_id": "x1"})
    with pytest.raises(TaskDataError, match=r"dev.jsonl:1: query_id = 'x1' is no whole number"):
        write_predictions(tmp_path / "no", Asked(folder), outcomes[:1])
    assert not (tmp_path / "no").exists()


def without(name: str) -> dict:
    return {key: value for key, value in ROWS[0].items() if key != name}


PASSAGES = ROWS[0]["passages"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (without("passages"), r"no field 'passages'"),
        (without("query"), r"no field 'query'"),
        ({**ROWS[0], "query": 3}, "query = 3 is no text"),
        ({**ROWS[0], "passages": []}, "passages is empty; a query has at least one"),
        ({**ROWS[0], "passages": "text"}, "passages is no list of objects"),
        (
            {**ROWS[0], "passages": {**PASSAGES, "is_selected": [1]}},
            "lists of different lengths.*'is_selected': 1",
        ),
        (
            {**ROWS[0], "passages": {**PASSAGES, "passage_text": [3, *PASSAGES["passage_text"][1:]]}},
            "= 3 is no text",
        ),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, row, said):
    folder = folder_of(tmp_path, ROWS[1], row)
    for name in ("ms_marco", "ms_marco_ranking"):
        with pytest.raises(TaskDataError, match=rf"dev.jsonl:2.*{said}"):
            task(name).load(Asked(folder))


def test_other_mistakes_are_told_with_their_place(tmp_path):
    with pytest.raises(TaskDataError, match=r"dev.jsonl:1: answers = \[\] is no list of texts"):
        task("ms_marco").load(Asked(folder_of(tmp_path, {**ROWS[0], "answers": []})))
    marked = {**PASSAGES, "is_selected": [2, *PASSAGES["is_selected"][1:]]}
    with pytest.raises(TaskDataError, match=r"passages\[0\]: is_selected = 2 is no label.*allowed: '0', '1'"):
        task("ms_marco_ranking").load(Asked(folder_of(tmp_path, {**ROWS[0], "passages": marked})))
    with pytest.raises(TaskDataError, match=r"dev.jsonl:1: the query is empty"):
        task("ms_marco_ranking").load(Asked(folder_of(tmp_path, {**ROWS[0], "query": " "})))
    with pytest.raises(TaskDataError, match=r"dev.jsonl:1 and all after it have no relevant passage"):
        task("ms_marco_ranking").load(Asked(folder_of(tmp_path, ROWS[5])))


# ---- ranking


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A tiny model over bytes."""
    body = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "max_seq_len": 160, "init": {"std": 0.3}}
    parts = {"mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2}, "ffn": {"kind": "swiglu", "d_ff": 48}}
    model, tokenizer = build(ModelConfig.model_validate({**body, **parts})).eval(), ByteTokenizer()
    trained = SimpleNamespace(
        model=model, config=model.config, tokenizer=tokenizer, hf_tokenizer=None, prompt_ids=tokenizer.encode
    )
    return Subject.of(trained)


def test_passages_are_ranked_by_the_query_after_each(subject):
    chosen = task("ms_marco_ranking")
    items = chosen.load(Asked(INVENTED))
    assert len(items) == sum(any(r["passages"]["is_selected"]) for r in ROWS) == 20
    found = chosen.run(chosen.prepare(items, subject), subject)
    assert len(found.outcomes) == 20
    outcome, item = found.outcomes[0], items[0]
    expected = []
    for prompt in item.prompts:
        query = list((" " + item.query).encode())
        ids = torch.tensor([*prompt.encode(), *query])[-161:]
        with torch.inference_mode():
            log_p_TV = subject.model(ids[None, :-1]).logits[0].double().log_softmax(-1)
        places = range(len(ids) - 1 - len(query), len(ids) - 1)
        expected.append(sum(float(log_p_TV[t, ids[t + 1]]) for t in places))
    assert outcome["scores"] == pytest.approx(expected, abs=1e-3)
    assert outcome["rank"] == 1 + sum(s > expected[item.relevant[0]] for s in expected)
    scores = chosen.scores(found.outcomes)["mrr_10"]
    assert scores.value == pytest.approx(np.mean([1 / o["rank"] for o in found.outcomes]))
    n, k = len(item.prompts), 1
    assert scores.chance_low < scores.chance < scores.chance_high
    assert sum(v * p for v, p in guessed(n, k, 10)) == pytest.approx(sum(1 / r for r in range(1, n + 1)) / n)
    (cut,) = found.remarks
    assert cut.endswith("passages lost their beginning: the model takes no more")
    assert chosen.differences(found.outcomes, found.outcomes)["mrr_10"].value == 0


@pytest.mark.parametrize(("n", "k", "cutoff"), [(4, 1, 10), (4, 2, 10), (5, 3, 1), (5, 2, 2), (3, 3, 10)])
def test_chance_is_the_mean_over_all_orders(n, k, cutoff):
    orders = list(itertools.permutations(range(n)))
    each = [reciprocal(rank_of([-o.index(i) for i in range(n)], range(k)), cutoff) for o in orders]
    found = guessed(n, k, cutoff)
    assert sum(p for _, p in found) == pytest.approx(1)
    assert sum(v * p for v, p in found) == pytest.approx(np.mean(each))
    assert sum(v * v * p for v, p in found) == pytest.approx(np.mean(np.square(each)))


def test_a_tie_goes_against_the_model():
    assert rank_of([1.0, 1.0, 0.0], [1]) == 2
    assert rank_of([1.0, 1.0, 0.0], [0, 1]) == 1
    assert rank_of([0.0, 0.0, 0.0], [0]) == 3
    assert (reciprocal(10, 10), reciprocal(11, 10)) == (0.1, 0.0)
