"""Every verb on a small finished study: what it prints, its JSON, its exit code, and its Python function."""

from __future__ import annotations

import contextlib
import csv
import http.server
import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
import torch
from cli_kit import JOB, write_job

import fabric
from fabric import cli as command_line
from fabric.planning.trial import TrialSpec
from fabric.store import Store

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = {
    "sweep": "sweep",
    "plan": "plan",
    "run": "run",
    "submit": "submit",
    "results": "results",
    "status": "status",
    "models": "list_parts",
    "data show": "describe_data",
    "data get": "get_data",
    "generate": "generate",
    "eval": "measure_all",
    "compare": "compare",
    "export": "export",
    "doctor": "doctor",
    "bench": "bench",
}


def verbs():
    import typer

    group = typer.main.get_command(command_line.app)
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {n}": c for n, c in inner.items()} if inner else {name: command}
    return found


def test_every_verb_is_one_documented_function():
    assert set(verbs()) == set(FUNCTIONS)
    for name in FUNCTIONS.values():
        assert name in fabric.__all__
        function = getattr(fabric, name)
        assert callable(function)
        assert inspect.getdoc(function), name


@pytest.mark.parametrize("verb", list(FUNCTIONS))
def test_help_names_every_option(cli, verb):
    out = cli(*verb.split(), "--help")
    command = verbs()[verb]
    assert command.help.split("\n")[0][:40] in out
    for parameter in command.params:
        for option in parameter.opts if parameter.param_type_name == "option" else []:
            assert option in out, (verb, option)


def test_help_groups_the_verbs(cli):
    out = cli("--help")
    for group in ("Run a study:", "Look:", "Use a trained model:", "This machine:"):
        assert group in out


@pytest.mark.parametrize(("verb", "first"), [("results {root}", "tiny"), ("models", "mixer:\n")])
def test_a_reader_that_leaves_early_is_no_error(swept, verb, first):
    command = f"{sys.executable} -P -m fabric.cli {verb.format(root=swept.root)} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(first)


@pytest.mark.parametrize("verb", ["results {root}", "models", "status {root} --json", "--help"])
def test_a_reader_that_has_left_is_no_error(swept, verb):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-P", "-m", "fabric.cli", *verb.format(root=swept.root).split()]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_end_of_a_file_is_no_interruption(monkeypatch):
    def cut_short(*_, **__):
        raise EOFError("Ran out of input")

    monkeypatch.setattr(import_module("fabric.results"), "status", cut_short)
    monkeypatch.setattr("sys.argv", ["fabric", "status", "x"])
    with pytest.raises(EOFError):
        command_line.main()


def test_a_deleted_current_folder_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone}; {sys.executable} -P -c 'from fabric.cli import main; main()' doctor"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=gone, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the current folder does not exist")


def test_results_and_their_files(cli, swept, tmp_path):
    text = cli("results", swept.root)
    assert "norm_placement" in text
    assert "sandwich" in text
    assert "main: " in text
    found = cli.json("results", swept.root, "--json")
    assert found["job"] == "tiny"
    assert {a["arm"] for a in found["arms"]} == {"norm_placement=pre", "norm_placement=sandwich"}
    assert len(found["decisions"]) == 1
    table, parquet, picture = tmp_path / "t.csv", tmp_path / "t.parquet", tmp_path / "t.png"
    assert cli("results", swept.root, "--csv", table, "--parquet", parquet, "--plot", picture) == ""
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == 2
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(parquet).num_rows == 2
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://127.0.0.1:10001", "auto"])
def test_submitting_to_what_is_no_job_server_is_an_error(cli, tmp_path, address):
    cli("submit", write_job(tmp_path), "--address", address, code=2)
    assert cli.err.startswith(f"error: {address} is no job server")


@pytest.fixture
def server():
    """Starts servers that answer everything with a text, or (None) with nothing."""
    with contextlib.ExitStack() as stack:

        def start(text):
            class Answers(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    if text is None:
                        over.wait(20)
                        return
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(text.encode())

                def log_message(self, *_):
                    pass

            over = threading.Event()
            started = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
            threading.Thread(target=started.serve_forever, daemon=True).start()
            stack.callback(started.shutdown)
            stack.callback(over.set)
            return f"http://127.0.0.1:{started.server_port}"

        yield start


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html>hello</html>", "is a server, but no Ray job server"),
        ('{"version": 1}', "is a server, but no Ray job server"),
        (None, "no job server answers (timed out)"),
    ],
)
def test_other_servers_are_told_from_a_job_server(cli, tmp_path, server, monkeypatch, text, said):
    from fabric.runtime import submit

    monkeypatch.setattr(submit, "ANSWER_WITHIN", 0.5)
    job = write_job(tmp_path, JOB.replace("path: text.txt", f"path: {tmp_path}/text.txt"))
    cli("submit", job, "--address", server(text), code=2)
    assert said in cli.err
    assert len(cli.err.splitlines()) == 1


def test_status(cli, swept):
    assert "4 finished" in cli("status", swept.root)
    found = cli.json("status", swept.root, "--json")
    assert {s["state"] for s in found} == {"finished"}
    assert all(s["val_loss"] > 0 for s in found)


def test_status_says_what_was_interrupted_and_writes_nothing(cli, tmp_path):
    record = Store(tmp_path / "job").trial("0" * 16)
    record.write_spec({})
    record.new_attempt({}).write_status("running", 7)
    before = sorted(tmp_path.rglob("*"))
    (found,) = cli.json("status", tmp_path / "job", "--json")
    assert (found["state"], found["step"]) == ("interrupted", 7)
    assert sorted(tmp_path.rglob("*")) == before


def test_models(cli):
    found = cli.json("models", "--json")
    families = {
        "mixer",
        "ffn",
        "optimizer",
        "schedule",
        "objective",
        "corpus",
        "examples",
        "tokenizer",
        "scheduler",
    }
    assert {*families, "preset"} == set(found)
    text = cli("models")
    for kind, _ in found["mixer"]:
        assert kind in text


def test_data_show(cli, swept):
    found = cli.json("data", "show", swept.job, "--out", swept.out, "--json")
    assert found["state"] == "built"
    assert found["vocab_size"] == 257
    assert found["splits"]["train"]["n_tokens"] > 10_000
    assert "vocab_size" in cli("data", "show", swept.job, "--out", swept.out)


def test_run_trains_one_arm_that_a_sweep_takes_over(cli, tmp_path):
    job, out = write_job(tmp_path), tmp_path / "runs"
    final = cli.json("run", job, "--arm", "norm_placement=sandwich", "--seed", 1, "--out", out, "--json")
    assert final["state"] == "finished"
    assert "step" in cli.err
    made = cli.json("plan", job, "--out", out, "--json")
    (taken,) = [t for t in made["trials"] if t["state"] == "finished"]
    assert (taken["arm"], taken["seed"], taken["id"]) == ("norm_placement=sandwich", 1, final["id"])
    again = cli("run", job, "--arm", "norm_placement=sandwich", "--seed", 1, "--out", out)
    assert "val_loss" in again


def test_run_solves_the_width_as_the_sweep_does(tmp_path):
    arms = [{"name": "gqa"}, {"name": "mha", "set": {"model.mixer": {"kind": "mha", "n_heads": 4}}}]
    job = write_job(tmp_path)
    overrides = [f"search.axes={json.dumps([{'arms': arms}])}", "search.match=params"]
    made = fabric.plan(job, overrides=overrides, out=tmp_path / "runs")
    final = fabric.run(job, arm="mha", overrides=overrides, out=tmp_path / "runs")
    assert final["id"] == next(t.id for t in made.trials if t.arm == "mha" and t.seed == 0)


def test_generate(cli, swept):
    def made(*options):
        return cli("generate", swept.root, "--prompt", "the cat", "--tokens", 20, *options)

    greedy = made("--temperature", 0)
    assert greedy.startswith("the cat")
    assert greedy == made("--temperature", 0, "--seed", 9)
    assert made("--top-k", 1, "--seed", 3) == greedy
    assert made("--top-p", 1e-6, "--seed", 3) == greedy
    assert made("--temperature", 3, "--seed", 1) != made("--temperature", 3, "--seed", 2)
    assert made("--temperature", 3, "--seed", 1) == made("--temperature", 3, "--seed", 1)
    assert cli("generate", swept.root, "--tokens", 3)


def llama_like(swept):
    """A trial of an arm that transformers has."""
    for trial in sorted((swept.root / "trials").iterdir()):
        spec = TrialSpec.model_validate_json((trial / "trial.json").read_text())
        if spec.model.norm_placement == "pre":
            return trial
    raise AssertionError("no trial with pre-norm")


def test_export_gives_a_folder_that_transformers_loads_with_the_same_logits(cli, swept, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fabric.trained import load_trained

    trial, folder = llama_like(swept), tmp_path / "exported"
    assert str(folder) in cli("export", trial, "--out", folder)
    trained = load_trained(trial)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([trained.tokenizer.encode("the cat sat on her mat")])
    with torch.inference_mode():
        assert torch.allclose(trained.model(ids).logits, theirs(ids).logits, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("the cat sat on her mat")["input_ids"] == ids[0].tolist()
    assert theirs.config.eos_token_id == trained.tokenizer.eos_id
    assert "val_loss" in (folder / "README.md").read_text()


def test_doctor(cli, tmp_path):
    found = cli.json("doctor", "--out", tmp_path / "new" / "deep", "--json")
    assert {f["level"] for f in found} <= {"ok", "note", "error"}
    assert any(f["what"].startswith("torch ") for f in found)
    assert not (tmp_path / "new").exists()


def test_doctor_says_where_no_records_can_be_written(cli, tmp_path):
    (tmp_path / "text.txt").write_text("mine")
    out = cli("doctor", "--out", tmp_path / "text.txt", code=1)
    assert f"{tmp_path}/text.txt is a file: no records can be written there" in out.replace("\n", "")
    if Path("/proc/self").exists():
        assert "nothing can be written to /proc" in cli("doctor", "--out", "/proc/absent", code=1)


def test_interrupted_while_it_is_imported_it_says_so(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-P", "-c", "from fabric.__main__ import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_doctor_ends_with_1_when_fabric_will_not_run(cli, monkeypatch):
    from fabric import doctoring

    monkeypatch.setattr(doctoring, "_hub_kernels", lambda: doctoring.Finding("error", "hidden", "uninstall"))
    assert "error  hidden" in cli("doctor", code=1)


def test_a_finished_sweep_inline_is_quick_and_prints_the_table(cli, swept):
    out = cli("sweep", swept.job, "--out", swept.out, "--inline")
    assert "sandwich" in out
    assert "adopted:" in out


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "missing.yaml"], "missing.yaml: cannot be read"),
        (["plan", "{job}", "--scale", "huge"], "no such scale"),
        (["plan", "{job}", "--set", "train.tokns=3"], "did you mean 'tokens'"),
        (["plan", "{job}", "--set", "nothing"], "path=value"),
        (["run", "{job}", "--arm", "norm_placement=prr"], "did you mean 'norm_placement=pre'"),
        (["run", "{job}", "--seed", "-1"], "--seed"),
        (["run", "{job}", "--seed", 2**64], "seed"),
        (["results", "nowhere"], "no job folder"),
        (["results", "{root}", "--study", "zz"], "holds no study zz"),
        (["status", "nowhere"], "no job folder"),
        (["generate", "nowhere"], "neither a trial"),
        (["generate", "{root}", "--tokens", 500], "max_seq_len"),
        (["generate", "{root}", "--temperature", -1], "--temperature"),
        (["generate", "{root}", "--top-p", 0, "--tokens", 4], "top_p"),
        (["export", "nowhere", "--out", "x"], "neither a trial"),
        (["export", "{root}"], "--out"),
        (["data", "get", "gpt5"], "cannot be fetched"),
        (["data", "show", "missing.yaml"], "cannot be read"),
        (["swep", "{job}"], "swep"),
        (["plan"], "JOB"),
        (["bench", "nothing"], "nothing"),
    ],
)
def test_what_a_user_got_wrong_is_one_message_and_exit_code_2(
    cli, swept, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    job = write_job(tmp_path)
    texts = [str(a).format(job=job, root=swept.root) for a in arguments]
    out = cli(*texts, code=2)
    assert out == ""
    assert words in cli.err
    assert "Traceback" not in cli.err


def test_our_own_mistakes_are_not_hidden(monkeypatch):
    def broken(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr("fabric.inspecting.list_parts", broken)
    monkeypatch.setattr("sys.argv", ["fabric", "models"])
    with pytest.raises(KeyError):
        command_line.main()


def test_the_installed_command_gives_exit_codes(tmp_path):
    def run(shell):
        return subprocess.run(shell, shell=True, capture_output=True, text=True, executable="/bin/bash")

    python = f"{sys.executable} -m fabric.cli"
    wrong = run(f"{python} plan {tmp_path}/missing.yaml")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"error: {tmp_path}/missing.yaml: cannot be read: No such file or directory\n"


def test_the_caches_are_shared_and_the_job_folder_can_be_moved(swept, tmp_path):
    shutil.copytree(swept.out, tmp_path / "moved")
    assert fabric.generate(tmp_path / "moved" / "tiny", "the", tokens=4, temperature=0).startswith("the")
