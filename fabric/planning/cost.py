"""What a trial will cost, before it runs: steps, FLOPs, peak memory, disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import subprocess
import sys
import time
from functools import cache, lru_cache
from pathlib import Path

from fabric.data.disk import write_atomic
from fabric.planning.machine import WORKER_MODULES
from fabric.planning.trial import TrialSpec
from fabric.sources import source_hash
from kernels import native
from kernels.folders import default_cache_root
from models import n_params
from models.config import ModelConfig
from models.cost import saved_bytes

# Growth of the resident set over the bytes alive at the peak, on CPUs: glibc keeps freed blocks below 32 MiB and
# cannot always use them again. Measured for the tiny presets at 8 x 128 to 32 x 512 tokens: 1.2 to 1.55.
KEPT_BY_MALLOC = 1.35
_DAY = 86400.0
ROW_BYTES = 450  # of JSON for a step in metrics.jsonl
HISTORY_BYTES = 16  # of a checkpoint for each step's loss, norm and times


def n_steps(spec: TrialSpec) -> int:
    """Optimizer steps of the whole run."""
    return spec.train.n_steps(spec.data.seq_len, n_params(spec.model))


def training_tokens(spec: TrialSpec) -> int:
    """Tokens of the whole run: whole steps of whole batches."""
    return n_steps(spec) * spec.train.batch_size * spec.data.seq_len


def _forward_flops(spec: TrialSpec) -> float:
    """Of a token."""
    return spec.train.objective.flops_per_token(spec.model, spec.data.seq_len, spec.data.n_asked)


def training_flops(spec: TrialSpec) -> float:
    """FLOPs of the whole run: forward, and twice that backward, of every token."""
    forward = _forward_flops(spec)
    return 3 * forward * training_tokens(spec)


def evaluation_flops(spec: TrialSpec) -> float:
    """FLOPs of the validations on the way and of the final readings of both splits, where their size is stated."""
    evaluate = spec.evaluate
    forward = _forward_flops(spec)
    times = evaluate.times
    if evaluate.every_tokens is not None:
        times = training_tokens(spec) // evaluate.every_tokens
    final = (evaluate.final_val_tokens or 0) + (evaluate.test_tokens or 0)
    return forward * (max(0, times - 1) * evaluate.val_tokens + final)


def peak_memory_bytes(spec: TrialSpec) -> int:
    """Predicted peak resident bytes of the process (or of CUDA's allocator) that trains this trial, of each rank.

    What a process holds that has trained next to nothing, plus parameters, gradients, optimizer state (fp32 master
    weights), and the activations of one micro-batch.
    """
    train = spec.train
    n = n_params(spec.model)
    # Of an adapted model next to nothing has gradients, and a state.
    state = n * (4 if train.lora else 8 + train.optimizer.STATE_BYTES_PER_PARAM)
    share = train.batch_size // spec.ranks.most
    micro_batch = min(train.micro_batch_size or share, share)
    seq_len = spec.data.seq_len
    n_targets = train.objective.most_targets(seq_len)
    live = state + live_activation_bytes(spec.model, micro_batch, seq_len, train.precision, n_targets)
    return int(live) if spec.device == "cuda" else int(process_bytes() + KEPT_BY_MALLOC * live)


@lru_cache(maxsize=4096)
def live_activation_bytes(
    model: ModelConfig, batch: int, seq_len: int, precision: str, n_targets: int | None = None
) -> int:
    """Bytes of activations alive at the peak of a step: what backward needs, and the largest transient.

    `n_targets` tokens of a row are predicted: all (None), or an encoder's few.
    """
    from fabric.train.loss import rows_at_once

    rows, V, D, size = batch * seq_len, model.vocab_size, model.d_model, 4 if precision == "fp32" else 2
    scored = batch * (n_targets or seq_len)
    saved = saved_bytes(model, batch, seq_len, size)
    # The loss: logits that become their gradient, the gradients of hidden states and of the output matrix.
    head = size * (min(scored, rows_at_once(V, D)) * V + scored * D) + 4 * V * D
    if not model.causal:  # plain cross entropy: logits in fp32, log-probabilities, their gradient
        head = 12 * scored * V
    block = size * rows * model.ffn.transient_elements(D)
    if precision != "fp32":
        # Autocast: products in 16 bits, the residual stream and what norms keep of it in 32.
        n_wide = 0 if model.norm_placement == "post" else 2 * model.n_layers
        saved += 2 * rows * (n_wide + 1) * (D + model.norm.saved_statistics())
        saved += 2 * n_params(model)  # weights in 16 bits
        head += 2 * V * D
    return saved + max(head, block)


def checkpoint_bytes(spec: TrialSpec) -> int:
    """Bytes of one checkpoint: fp32 weights, the optimizer's state, and the history of the loop."""
    state = 0.0 if spec.train.lora else spec.train.optimizer.STATE_BYTES_PER_PARAM
    weights = n_params(spec.model) * (4 + state)
    return int(weights + HISTORY_BYTES * n_steps(spec))


def disk_bytes(spec: TrialSpec) -> int:
    """Bytes a finished trial leaves on disk: the checkpoints that are kept, and its rows."""
    n_rows = n_steps(spec) // spec.train.log_every_steps + spec.evaluate.times
    return spec.train.checkpoint.keep_last * checkpoint_bytes(spec) + ROW_BYTES * n_rows


_PROBE = """
import importlib
import sys
for module in sys.argv[1].split(","):
    importlib.import_module(module)
import torch
from fabric.train.config import TrainConfig
from fabric.train.step import Stepper
from models import build, preset
torch.set_num_threads(1)
train = TrainConfig.model_validate({
    "tokens": 64, "batch_size": 1, "precision": "bf16",
    "optimizer": {"kind": "adamw", "lr": 1e-3}, "schedule": {"kind": "constant"},
})
model = build(preset("smollm-tiny", n_layers=1))
rows = torch.zeros(1, 65, dtype=torch.long)
stepper = Stepper(model, train.optimizer.build(model), train, "cpu")
stepper.gradients(rows[:, :-1], rows[:, 1:], 1)
stepper.update(1.0)
with open("/proc/self/status") as file:
    status = dict(line.split(":", 1) for line in file)
print(int(status["VmRSS"].split()[0]) * 1024)
"""


@cache
def process_bytes() -> int:
    """Resident bytes of a sweep's worker that has trained next to nothing.

    Measured in a child (some seconds), then remembered in the user's cache folder: once a machine and torch version,
    and again the day after our sources have changed (what they import is most of it).
    """
    memo = process_memo()
    sources = source_hash()
    try:
        kept = json.loads(memo.read_text())
        if kept["sources"] == sources or time.time() - memo.stat().st_mtime < _DAY:
            return int(kept["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    measured = _measured_process()
    with contextlib.suppress(OSError):  # else it is measured again next time
        write_atomic(memo, json.dumps({"bytes": measured, "sources": sources}).encode())
    return measured


def process_memo() -> Path:
    """The file that remembers `process_bytes`."""
    import torch

    modules = hashlib.sha256(",".join(WORKER_MODULES).encode()).hexdigest()[:8]
    key = f"{platform.node()}-{platform.python_version()}-{torch.__version__}-{native.name()}-{modules}"
    return default_cache_root() / "machine" / f"worker-bytes-{key.replace('/', '_')}.json"


def _measured_process() -> int:
    root = Path(__file__).resolve().parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r})\n{_PROBE}"
    command = [sys.executable, "-c", code, ",".join(WORKER_MODULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])
