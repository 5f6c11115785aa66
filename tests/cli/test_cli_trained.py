"""Using what was trained when something is missing or wrong; being interrupted; files of results."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_kit import JOB, write_job
from ranks_kit import free_port

import fabric
from fabric import trained
from fabric.planning.trial import TrialSpec
from fabric.results import status
from fabric.store import Store

ROOT = Path(__file__).resolve().parents[2]


def a_llama(root):
    """A trial of an arm that transformers has."""
    for trial in sorted((root / "trials").iterdir()):
        if TrialSpec.model_validate_json((trial / "trial.json").read_text()).model.norm_placement == "pre":
            return trial
    raise AssertionError("no trial with pre-norm")


# -- a token cache that is gone --------------------------------------------------------------------------------------


def test_a_lost_token_cache_is_built_again(cli, swept, tmp_path):
    before = cli("generate", swept.root, "--prompt", "the", "--tokens", 8, "--temperature", 0)
    out = tmp_path / "runs"
    shutil.copytree(swept.out, out, ignore=shutil.ignore_patterns(".cache"))
    assert cli("generate", out / "tiny", "--prompt", "the", "--tokens", 8, "--temperature", 0) == before
    shutil.rmtree(out / ".cache")
    cli("export", a_llama(out / "tiny"), "--out", tmp_path / "exported")
    assert (tmp_path / "exported" / "tokenizer.json").exists()


def test_a_lost_token_cache_of_text_that_changed_is_an_error_with_both(cli, tmp_path):
    job, out = write_job(tmp_path), tmp_path / "runs"
    cli("run", job, "--out", out)
    shutil.rmtree(out / ".cache")
    text = tmp_path / "text.txt"
    text.write_text(text.read_text() + "\n\nmore")
    cli("generate", out / "tiny", code=2)
    assert "cannot be built again: the text of files is not what it was then" in cli.err
    text.unlink()
    shutil.rmtree(out / ".cache")
    cli("generate", out / "tiny", code=2)
    assert "cannot be built again" in cli.err
    assert "does not exist" in cli.err


# -- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "bpe", "file"])
def test_an_exported_tokenizer_knows_its_end_and_its_length(cli, tmp_path, kind):
    from transformers import AutoConfig, AutoTokenizer

    job, out = write_job(tmp_path), tmp_path / "runs"
    tokenizer = {"bytes": "bytes", "bpe": "{kind: bpe, vocab_size: 300}", "file": str(tmp_path / "own.json")}
    if kind == "file":
        from fabric.data import DataConfig, prepare

        made = DataConfig(
            corpus=str(tmp_path / "text.txt"), tokenizer={"kind": "bpe", "vocab_size": 300}, seq_len=8
        )
        stored = prepare(made, tmp_path / "cache").tokenizer().json
        (tmp_path / "own.json").write_text(stored.replace("<|endoftext|>", "</s>"))
    cli("run", job, "--out", out, "--set", f"data.tokenizer={tokenizer[kind]}", "--set", "train.tokens=512")
    cli("export", out / "tiny", "--out", tmp_path / "exported")
    ours = trained.load_trained(out / "tiny").tokenizer
    theirs = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert (
        theirs.eos_token_id == AutoConfig.from_pretrained(tmp_path / "exported").eos_token_id == ours.eos_id
    )
    assert theirs.eos_token == ours.eos_token == ("</s>" if kind == "file" else "<|endoftext|>")
    assert theirs.model_max_length == 64
    assert theirs("the cat sat")["input_ids"] == ours.encode("the cat sat")


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_exporting_onto_a_file_is_an_error(cli, swept, tmp_path, inside):
    (tmp_path / "taken").write_text("mine")
    cli("export", a_llama(swept.root), "--out", tmp_path / "taken" / inside, code=2)
    assert f"error: {tmp_path}/taken is a file: export writes a folder" in cli.err
    assert (tmp_path / "taken").read_text() == "mine"


def test_an_export_goes_into_no_folder_with_other_files_nor_into_records(cli, swept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("---\nmine\n---\n")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    trial = a_llama(swept.root)
    before = sorted(swept.root.rglob("*"))
    for out, words in (
        ("", "--out is empty"),
        (".", "is the current folder"),
        ("mine", "is not empty, and holds more than an earlier export"),
        ("link", "is a link to"),
        (trial, f"lies in the records of {trial}"),
        (swept.root / "best", f"lies in the records of {swept.root}"),
    ):
        cli("export", trial, "--out", out, code=2)
        assert words in cli.err, out
    assert sorted(swept.root.rglob("*")) == before
    assert (tmp_path / "mine" / "README.md").read_text() == "---\nmine\n---\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "mine"]


def test_an_earlier_export_is_replaced_whole_or_left_alone(cli, swept, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    out = tmp_path / "new" / "model"
    cli("export", a_llama(swept.root), "--out", out)
    (out / "special_tokens_map.json").write_text("{}")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for error, code in ((OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)):

        def fail(self, folder, error=error):
            (folder / "config.json").write_text("half")
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(PreTrainedModel, "save_pretrained", fail)
            cli("export", a_llama(swept.root), "--out", out, code=code)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        assert list(out.parent.iterdir()) == [out]
    cli("export", out, "--out", out)
    assert {p.name for p in out.iterdir()} == before.keys() - {"special_tokens_map.json"}
    assert (out / "model.safetensors").read_bytes() == before["model.safetensors"]
    (out / "notes.txt").write_text("mine")
    cli("export", a_llama(swept.root), "--out", out, code=2)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="no /proc")
def test_a_target_that_cannot_be_written_is_an_error_with_its_name(cli, swept):
    cli("export", a_llama(swept.root), "--out", "/proc/absent", code=2)
    assert cli.err.startswith("error: /proc/absent cannot be written: ")
    assert "give another --out" in cli.err


def test_a_tokenizer_of_another_model_is_an_error(cli, swept, tmp_path):
    from models import build
    from models.hf import to_transformers

    folder = tmp_path / "model"
    cli("export", a_llama(swept.root), "--out", folder)
    smaller = trained.load_trained(folder).model.config.replace(vocab_size=99)
    to_transformers(build(smaller)).save_pretrained(folder)
    cli("generate", folder, code=2)
    assert f"error: {folder}'s tokenizer has 257 ids, its model 99: they are not of one model" in cli.err


# -- generate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": float("nan")}, "temperature=nan is not a number"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": 1e-320}, r"temperature=1e-320: allowed are 0 \(greedy\), and 1e-06 or more"),
        ({"seed": 2**70}, r"seed 1180591620717411303424: allowed are 0 to 2\*\*63 - 1"),
        ({"seed": -1}, "seed -1"),
        ({"tokens": 0}, "tokens=0: at least 1"),
        ({"tokens": 60}, r"use tokens=57 \(--tokens 57\) or a shorter prompt"),
        ({"prompt": "the cat " * 20}, "use a shorter prompt$"),
        ({"prompt": b"a\xff".decode(errors="surrogateescape")}, "the prompt is not UTF-8: its character 1"),
    ],
)
def test_options_out_of_range_are_errors_in_python_too(swept, options, words):
    with pytest.raises(ValueError, match=words):
        fabric.generate(swept.root, **{"prompt": "the cat", "tokens": 4, **options})


def test_a_prompt_of_invalid_bytes_is_an_error(swept):
    command = [sys.executable, "-m", "fabric.cli", "generate", str(swept.root), "--prompt", b"a\xff"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the prompt is not UTF-8"), done.stderr


# -- results ---------------------------------------------------------------------------------------------------------


def test_files_of_results_go_into_folders_that_are_made(cli, swept, tmp_path):
    new = tmp_path / "a" / "b"
    cli("results", swept.root, "--csv", new / "t.csv", "--parquet", new / "p" / "t.parquet")
    cli("results", swept.root, "--plot", new / "q" / "t.svg")
    assert (new / "t.csv").exists()
    assert (new / "p" / "t.parquet").exists()
    assert (new / "q" / "t.svg").exists()


@pytest.mark.parametrize(("name", "words"), [("o.xyz", "ends in '.xyz'"), ("o", "has no ending")])
def test_a_picture_of_unknown_ending_is_an_error_before_anything_is_written(
    cli, swept, tmp_path, name, words
):
    cli("results", swept.root, "--plot", tmp_path / name, "--csv", tmp_path / "t.csv", code=2)
    assert words in cli.err
    assert ".png" in cli.err
    assert not (tmp_path / "t.csv").exists()


# -- run -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_says_so_and_goes_on(cli, tmp_path, number):
    job, out = write_job(tmp_path), tmp_path / "runs"
    arguments = ["run", str(job), "--out", str(out), "--set", "train.tokens=50k"]
    command = [sys.executable, "-m", "fabric.cli", *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("tiny/trials/*/attempts/1/status.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(running.pid, number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert errors.splitlines()[-1] == f"interrupted; the same command goes on. Records: {out}"
    assert "Traceback" not in errors
    left, record = interrupted(out)
    assert cli.json(*arguments, "--json")["state"] == "finished"
    assert record.provenance(2)["resumed_step"] == left.step > 0, "nothing trained is lost"


def interrupted(out):
    """What the only trial's status says of its first attempt, and its record."""
    store = Store(out / "tiny")
    (trial,) = store.trial_ids()
    record = store.trial(trial)
    assert record.attempt_numbers() == [1]
    (said,) = status(out / "tiny")
    assert said.state == "interrupted"
    return record.status(), record


@pytest.mark.slow
def test_torchrun_trains_the_same_on_two_ranks_and_a_signal_costs_nothing(tmp_path):
    job = write_job(tmp_path, JOB + "resources: {workers: 2, engine: deepspeed, zero_stage: 2}\n")
    out, sets = tmp_path / "runs", ["train.tokens=40k", "train.optimizer.lr=1e-3", "evaluate.times=20"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "fabric.train", str(job), "--out", str(out)]
    command += [part for value in sets for part in ("--set", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not list(out.glob("tiny/trials/*/attempts/1/metrics*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.terminate()
    _, errors = running.communicate(timeout=60)
    assert running.returncode != 0, errors
    left, record = interrupted(out)
    assert fabric.run(job, overrides=sets, out=out)["state"] == "finished"
    assert record.provenance(2)["resumed_step"] == left.step > 0
    assert record.provenance(1)["ranks"] == {"world": 2, "engine": "deepspeed", "zero_stage": 2}
    alone = fabric.run(job, overrides=sets, out=tmp_path / "alone")
    whole = Store(tmp_path / "alone" / "tiny").trial(alone["id"])
    found, wanted = (
        [(r["step"], r["val_loss"]) for r in t.metrics() if "val_loss" in r] for t in (record, whole)
    )
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert len(found) == 20
    # Rounding grows with the steps.
    assert [v for _, v in found[:5]] == pytest.approx([v for _, v in wanted[:5]], abs=5e-6)
    assert found[-1][1] == pytest.approx(wanted[-1][1], abs=1e-2)


@pytest.mark.slow
def test_a_mistake_in_the_job_is_said_by_one_of_torchrun_s_ranks(tmp_path):
    job = write_job(tmp_path, JOB.replace("d_model: 32", "d_model: x"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["--log-dir", str(tmp_path / "logs"), "--redirects", "3", "-m", "fabric.train", str(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, capture_output=True, env=environment, timeout=120).returncode == 1
    said = sorted(log.read_text() for log in (tmp_path / "logs").rglob("stderr.log"))
    assert len(said) == 2
    assert said[0] == ""
    assert said[1].startswith(f"error: {job}:5: base.model.d_model = 'x'")
    assert len(said[1].splitlines()) == 1


def two_ranks(job, outs, **environment):
    """What each of two ranks, started without torchrun, ends with: exit code and what it said."""
    base = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
    base |= {"MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", **environment}
    command = [sys.executable, "-m", "fabric.train", str(job), "--out"]
    ranks = [
        subprocess.Popen(
            [*command, str(out)], env={**base, "RANK": str(i)}, stderr=subprocess.PIPE, text=True
        )
        for i, out in enumerate(outs)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, said)]


@pytest.mark.slow
def test_ranks_that_share_no_folder_say_so(tmp_path):
    outs = [tmp_path / "here", tmp_path / "there"]
    (code, said), (other, silent) = two_ranks(write_job(tmp_path, JOB), outs)
    assert (code, other, silent) == (2, 2, "")
    assert said == (
        f"error: --out {outs[0]}: rank 1 does not see what rank 0 writes there; give a folder that all nodes share, "
        "or an s3:// URL\n"
    )
    assert not list(tmp_path.rglob("attempts")), "nothing was trained"


@pytest.mark.slow
def test_what_only_rank_0_can_find_wrong_is_said_once(tmp_path):
    job = write_job(tmp_path, JOB.replace("path: text.txt", "path: empty.txt"))
    (tmp_path / "empty.txt").write_text("")
    (code, said), (other, silent) = two_ranks(job, [tmp_path / "runs"] * 2)
    assert (code, other, silent) == (2, 2, "")
    assert said.startswith(f"error: {job}:11: base.data.corpus.path: {tmp_path}/empty.txt is empty")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "has RANK, WORLD_SIZE, but not MASTER_PORT, MASTER_ADDR"),
        (
            {"RANK": "x", "WORLD_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
            "RANK='x' in the environment",
        ),
    ],
)
def test_half_of_a_launcher_s_variables_are_a_mistake(monkeypatch, capsys, environment, words):
    from fabric.train.__main__ import main

    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["fabric.train", "job.yaml"])
    assert main() == 2
    assert words in capsys.readouterr().err


def test_an_error_about_the_corpus_names_the_job_s_line(cli, tmp_path):
    job = write_job(tmp_path, JOB.replace("path: text.txt", "path: empty.txt"))
    (tmp_path / "empty.txt").write_text("")
    cli("run", job, "--out", tmp_path / "runs", code=2)
    assert cli.err.startswith(f"error: {job}:11: base.data.corpus.path: {tmp_path}/empty.txt is empty")
