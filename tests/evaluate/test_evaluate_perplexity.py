"""How likely a text is: windows that score every token once, and numbers that others find too."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stories_kit import STORIES, stories, stories_tokenizer
from theirs_kit import perplexity_of

from fabric.data.rows import TaskDataError
from fabric.data.tokenizer import ByteTokenizer, JsonTokenizer
from fabric.evaluate.perplexity import rolling, sizes_of
from fabric.evaluate.subject import Subject
from fabric.evaluate.task import Asked
from fabric.evaluate.tasks import task
from fabric.trained import find_trained
from models import ModelConfig, build

TEXT = "It was the best of times, it was the worst of times;\nit was the age of wisdom — " * 5
REAL = os.environ.get("FABRIC_DATA")


def subject_of(model, tokenizer) -> Subject:
    found = SimpleNamespace(
        model=model,
        config=model.config,
        tokenizer=tokenizer,
        hf_tokenizer=None,
        prompt_ids=tokenizer.encode,
    )
    return Subject.of(found)


@pytest.fixture(scope="module")
def subject() -> Subject:
    body = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "max_seq_len": 64, "init": {"std": 0.3}}
    parts = {"mixer": {"kind": "mha", "n_heads": 4}, "ffn": {"kind": "swiglu", "d_ff": 48}}
    return subject_of(build(ModelConfig.model_validate({**body, **parts})).eval(), ByteTokenizer())


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def scored(text: str, subject: Subject, folder: Path | None = None, limit: int | None = None, **how):
    chosen = task(text)
    ran = chosen.run(chosen.prepare(chosen.load(Asked(folder, limit)), subject), subject, **how)
    return chosen.scores(ran.outcomes), ran


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(1, 70), st.integers(2, 20), st.integers(1, 20))
def test_every_token_is_scored_once_as_the_harness_does(n, length, stride):
    lm_eval = pytest.importorskip("lm_eval.utils")
    ids, stride = list(range(1, n + 1)), min(stride, length)
    windows = list(rolling(ids, 0, length, stride))
    assert [i for w in windows for i in w.ids[len(w.ids) - w.n_scored :].tolist()] == ids
    assert all(len(w.ids) <= length + 1 for w in windows)
    theirs = lm_eval.get_rolling_token_windows(ids, 0, length, length - stride + 1)
    for ours, (context, continuation) in zip(windows, theirs, strict=True):
        found = ours.ids[:-1].tolist(), ours.ids[1:][-ours.n_scored :].tolist()
        assert found == (context, continuation[-ours.n_scored :])


@pytest.mark.parametrize("stride", [None, 16])
def test_it_is_the_models_own_likelihood(subject, file, stride):
    window = 48
    scores, ran = scored(f"text:path={file},window={window},stride={stride or window}", subject)
    ids = list(TEXT.encode())
    nats = 0.0
    for w in rolling(ids, subject.first_id, window, stride or window):
        with torch.inference_mode():
            log_p_TV = subject.model(torch.from_numpy(w.ids[None, :-1])).logits[0].double().log_softmax(-1)
        nats -= sum(
            float(log_p_TV[t, w.ids[t + 1]]) for t in range(len(w.ids) - 1 - w.n_scored, len(w.ids) - 1)
        )
    n_bytes = len(TEXT.encode())
    expected = {
        "perplexity": math.exp(nats / len(ids)),
        "loss": nats / len(ids),
        "bits_per_byte": nats / math.log(2) / n_bytes,
        "bits_per_character": nats / math.log(2) / len(TEXT),
        "word_perplexity": math.exp(nats / len(re.split(r"\s+", TEXT))),
    }
    assert {k: s.value for k, s in scores.items()} == pytest.approx(expected, rel=1e-5)
    assert ran.remarks == (f"windows of {window} tokens, stride {stride or window}",)
    score = scores["perplexity"]
    assert score.low < score.value < score.high
    assert sum(o["n_bytes"] for o in ran.outcomes) == n_bytes


def test_outcomes_do_not_depend_on_the_batch(subject, file):
    found = [
        [o["nats"] for o in scored(f"text:path={file},window=16", subject, rows=rows)[1].outcomes]
        for rows in (1, 7, 32)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] == pytest.approx(found[2], rel=1e-6)


def library_tokenizer(subwords: bool) -> JsonTokenizer:
    """Bytes, some of them merged within and across characters, or characters and words with marked spaces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if subwords:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        pairs = [("\u00c3", "\u00a9"), ("a", "b"), ("\u0120", "a"), ("\u00e2", "\u0122")]
        names = [*letters, *(a + b for a, b in pairs)]
        core = Tokenizer(models.BPE({c: i for i, c in enumerate(names)}, pairs))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
    else:
        core = Tokenizer(models.BPE({"<unk>": 0, "\u2581": 1, "a": 2, "b": 3}, [], unk_token="<unk>"))
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    core.add_special_tokens(["</s>"])
    return JsonTokenizer(core.to_str())


TOKENIZERS = ByteTokenizer(), library_tokenizer(True), library_tokenizer(False)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bytes", "merged bytes", "characters"])
@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.text(st.sampled_from("ab é€😀\n\t"), min_size=1, max_size=40), st.integers(1, 7))
def test_what_windows_stand_for_adds_up_to_the_text(tokenizer, text, length):
    ids, ends = tokenizer.encode_with_ends(text)
    assert ids == tokenizer.encode(text)
    n_scored = [w.n_scored for w in rolling(ids, 0, length, length)]
    sizes = sizes_of(text, ends, n_scored)
    assert [sum(s) for s in zip(*sizes)] == [len(text.encode()), len(text), len(re.split(r"\s+", text))]
    at = n_done = 0
    for size, n in zip(sizes, n_scored):
        part, n_done = text[at : at + size.n_chars], n_done + n
        assert size.n_bytes == len(part.encode())
        # A word is counted where white space that no other precedes begins; the first has none before it.
        begins = sum(c.isspace() and not text[at + i - 1 : at + i].isspace() for i, c in enumerate(part))
        assert size.n_words == begins + (at == 0 and n_done == n)
        at += size.n_chars
        if tokenizer is TOKENIZERS[0]:  # of bytes, a character is there with its last one
            assert text[:at].encode() == text.encode()[:n_done] or len(text[: at + 1].encode()) > n_done


def test_of_a_text_that_is_cut_the_bytes_that_were_scored_count(subject, tmp_path):
    """The first half is ASCII, the second has three bytes a character."""
    (tmp_path / "two.txt").write_text("abc " * 80 + "€" * 100)
    _, whole = scored(f"text:path={tmp_path / 'two.txt'},window=64", subject)
    assert [o["n_chars"] for o in whole.outcomes[:5]] == [64] * 5
    assert sum(o["n_chars"] for o in whole.outcomes[5:]) == 100
    _, cut = scored(f"text:path={tmp_path / 'two.txt'},window=64", subject, limit=5)
    for a, b in zip(cut.outcomes, whole.outcomes[:5], strict=True):
        assert a == pytest.approx(b)


@pytest.mark.filterwarnings("error")
def test_a_text_that_is_one_word_has_a_perplexity_all_the_same(subject, tmp_path):
    (tmp_path / "one.txt").write_text("a" * 300)
    scores, _ = scored(f"text:path={tmp_path / 'one.txt'},window=64", subject)
    assert scores["perplexity"].low <= scores["perplexity"].value
    assert scores["word_perplexity"].value == math.inf


def test_a_stride_takes_no_memory_of_its_own():
    windows = list(rolling(range(5000), 0, 1000, 1))
    assert len(windows) == 4001
    assert len({w.ids.base.ctypes.data for w in windows}) == 1


class Known:
    """A model that gives every byte after `first` the same distribution: of V ids, or of a byte's probability."""

    def __init__(self, log_p_V: torch.Tensor) -> None:
        self.lm_head_weight = log_p_V[:, None]
        self.config = SimpleNamespace(max_seq_len=32)

    def hidden(self, ids_BT):
        return torch.ones(*ids_BT.shape, 1)


class Pairs:
    """Two bytes an id: another tokenizer of the same bytes."""

    eos_id = 0

    def encode(self, text):
        data = text.encode()
        return [data[i] * 256 + data[i + 1] for i in range(0, len(data), 2)]

    def encode_with_ends(self, text):
        ends = ByteTokenizer().encode_with_ends(text)[1]
        return self.encode(text), ends[1::2]


def test_a_uniform_model_s_perplexity_is_its_vocabulary(file):
    scores, _ = scored(f"text:path={file}", subject_of(Known(torch.zeros(257)), ByteTokenizer()))
    assert scores["perplexity"].value == pytest.approx(257)
    assert scores["loss"].value / math.log(2) == pytest.approx(math.log2(257))


def test_bits_per_byte_do_not_depend_on_the_tokenizer(tmp_path):
    even = TEXT if len(TEXT.encode()) % 2 == 0 else TEXT + "."
    (tmp_path / "even.txt").write_text(even)
    log_p_V = torch.randn(256, generator=torch.Generator().manual_seed(0)).log_softmax(0)
    by_byte = Known(torch.cat([log_p_V, torch.full((1,), -1e9)]))
    by_pair = Known((log_p_V[:, None] + log_p_V).flatten())
    name = f"text:path={tmp_path / 'even.txt'}"
    one, two = (
        scored(name, subject_of(model, tokenizer))[0]
        for model, tokenizer in ((by_byte, ByteTokenizer()), (by_pair, Pairs()))
    )
    for metric in ("bits_per_byte", "bits_per_character", "word_perplexity"):
        assert one[metric].value == pytest.approx(two[metric].value, rel=1e-5), metric
    assert two["perplexity"].value == pytest.approx(one["perplexity"].value ** 2, rel=1e-4)


def test_mistakes_are_told(subject, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for text, said in {
        "text": "name it, text:path=FILE",
        f"text:path={tmp_path / 'none.txt'}": "none.txt cannot be read: No such file",
        f"text:path={tmp_path / 'empty.txt'}": "is empty",
        f"text:path={tmp_path / 'latin.txt'}": "latin.txt is not UTF-8 at byte 3",
        "wikitext2": "its data is not here",
    }.items():
        with pytest.raises(TaskDataError, match=said):
            task(text).load(Asked(tmp_path))
    (tmp_path / "some.txt").write_text(TEXT)
    for what, most in (("window=65", 64), ("stride=65", 64), ("window=16,stride=16", None)):
        chosen = task(f"text:path={tmp_path / 'some.txt'},{what}")
        if most is None:
            chosen.prepare(chosen.load(Asked()), subject)
            continue
        with pytest.raises(TaskDataError, match=f"text: {what}, the model takes 64 tokens .* at most {most}"):
            chosen.prepare(chosen.load(Asked()), subject)
    with pytest.raises(ValueError, match="stride=9 is more than window=8: tokens would be left out"):
        task("text:window=8,stride=9")
    with pytest.raises(ValueError, match="it has a text of its own"):
        task("wikitext2:path=a.txt")


@pytest.mark.skipif(not STORIES.is_dir(), reason="FABRIC_DATA names no folder with model-stories260K/")
@pytest.mark.parametrize("setting", ["window=512", "window=256,stride=100"])
def test_a_real_model_s_perplexity_is_that_which_transformers_finds(setting, tmp_path):
    """On the first windows of WikiText-2."""
    from transformers import AutoModelForCausalLM

    from models.hf import to_transformers

    to_transformers(stories(STORIES / "stories260K.bin").eval()).save_pretrained(tmp_path)
    stories_tokenizer(STORIES / "tok512.bin").save_pretrained(tmp_path)
    ours = Subject.of(find_trained(tmp_path))
    chosen = task(f"wikitext2:{setting}")
    prepared = chosen.prepare(chosen.load(Asked(Path(str(REAL)), 12)), ours)
    ran, windows = chosen.run(prepared, ours), prepared.windows
    scores = chosen.scores(ran.outcomes)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert windows[0].ids[0] == 1, "a text begins with <s>"
    assert scores["perplexity"].value == pytest.approx(perplexity_of(theirs, windows), rel=1e-4)
    n = sum(o["n_chars"] for o in ran.outcomes)
    scored_text = ours.trained.tokenizer.decode([int(i) for w in windows for i in w.ids[-w.n_scored :]])
    text = (Path(str(REAL)) / "wikitext-2" / "test.txt").read_text(encoding="utf-8")
    assert text[:n] == scored_text


@pytest.mark.skipif(REAL is None, reason="no FABRIC_DATA")
def test_a_limit_takes_the_first_windows_of_real_text(subject):
    scores, ran = scored("wikitext2:window=64", subject, Path(str(REAL)), limit=5)
    assert len(ran.outcomes) == scores["perplexity"].n == 5
