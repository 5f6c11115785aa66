"""A job small enough to train in a second, and the command line in this process."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fabric import cli

JOB = """\
schema: 1
name: tiny
base:
  model:
    d_model: 32
    n_layers: 2
    max_seq_len: 64
    mixer: {kind: gqa, n_heads: 4, n_kv_heads: 2}
    ffn: {kind: swiglu, d_ff: 64}
  data:
    corpus: {kind: files, path: text.txt}
    tokenizer: bytes
    seq_len: 32
  train:
    tokens: 4096
    batch_size: 8
    optimizer: {kind: adamw, lr: 1e-2}
    schedule: {kind: cosine}
  evaluate: {times: 2, val_tokens: 512, final_val_tokens: 1k, test_tokens: 1k, samples: null, recall: false}
search:
  mode: grid
  seeds: 2
  axes:
    - {path: model.norm_placement, values: [pre, sandwich]}
scales:
  longer: {train.tokens: 8192}
"""


def write_job(folder: Path, text: str = JOB) -> Path:
    """The job and its text in a folder."""
    rng = random.Random(5)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "her", "dog", "run", "home"]
    documents = [" ".join(rng.choice(words) for _ in range(40)) + "." for _ in range(150)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    path = folder / "job.yaml"
    path.write_text(text)
    return path


class Cli:
    """Runs `fabric …` as the installed command does, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """What is printed on stdout; stderr is kept in `err`. The exit code must be `code`."""
        self.monkeypatch.setattr("sys.argv", ["fabric", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = self.capsys.readouterr()
        self.err = captured.err
        assert (end.value.code or 0) == code, captured
        return captured.out

    def json(self, *arguments: object) -> Any:
        """The output, which must be JSON and nothing else."""
        return json.loads(self(*arguments))
