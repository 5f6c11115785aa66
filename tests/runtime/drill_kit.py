"""Small sweeps for the runtime's tests: a job of a few seconds, its process, its records, and ways to break it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fabric.results import results, status
from fabric.store import Place, Store

ROOT = Path(__file__).resolve().parents[2]
SEQ_LEN, BATCH = 32, 4
STEP = SEQ_LEN * BATCH
FIFO = {"kind": "fifo"}
SYNC_ASHA = {"kind": "asha", "sync": True, "reduction_factor": 2}
ASHA = {"kind": "asha", "reduction_factor": 2}
GQA = {"model.mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2}}


def write_text(path: Path, n_documents: int = 80) -> Path:
    """A text of words with some regularity, the same every time."""
    rng = random.Random(7)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "her", "dog", "run", "home"]
    documents = [" ".join(rng.choice(words) for _ in range(30)) + "." for _ in range(n_documents)]
    path.write_text("\n\n".join(documents))
    return path


def rates(*values: float) -> dict[str, Any]:
    return {"path": "train.optimizer.lr", "values": list(values), "role": "nuisance"}


def job(
    folder: Path, *, steps: int = 40, search: dict[str, Any] | None = None, **base: Any
) -> dict[str, Any]:
    """A job of tiny trials: `steps` steps of 4 x 32 byte tokens, two layers of width 32.

    Without a `search`: two phases (attention, norm), three rates on one tuning seed, two seeds. `base` overrides
    sections of the base, key by key; `resources` is the job's.
    """
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    sections = {
        "model": {
            "d_model": 32,
            "n_layers": 2,
            "max_seq_len": SEQ_LEN,
            "mixer": {"kind": "mha", "n_heads": 4},
            "ffn": {"kind": "swiglu", "d_ff": 64},
        },
        "data": {
            "corpus": {"kind": "files", "path": str(text)},
            "tokenizer": "bytes",
            "seq_len": SEQ_LEN,
            "validation_fraction": 0.1,
            "test_fraction": 0.1,
        },
        "train": {
            "tokens": steps * STEP,
            "batch_size": BATCH,
            "optimizer": {"kind": "adamw", "lr": 3e-3},
            "schedule": {"kind": "cosine", "warmup": 2},
            "checkpoint": {"every_steps": 10},
        },
        "evaluate": {
            "times": 2,
            "val_tokens": 8 * SEQ_LEN,
            "final_val_tokens": 16 * SEQ_LEN,
            "test_tokens": 16 * SEQ_LEN,
            "samples": None,
            "recall": False,
        },
    }
    resources = base.pop("resources", {})
    for name, values in base.items():
        sections[name] = {**sections[name], **values}
    return {
        "schema": 1,
        "name": "drill",
        "base": sections,
        "search": search or two_phases(),
        "resources": resources,
    }


def two_phases(scheduler: dict[str, Any] | None = None, *lr: float) -> dict[str, Any]:
    """Attention, then norm placement; three rates each, if no others are given."""
    arms = [{"name": "mha"}, {"name": "gqa", "set": GQA}]
    return {
        "mode": "phases",
        "seeds": 2,
        "tuning_seeds": 1,
        "scheduler": scheduler or FIFO,
        "axes": [rates(*(lr or (1e-3, 3e-3, 1e-2)))],
        "phases": [
            {"name": "attention", "axes": [{"arms": arms}]},
            {"name": "norm", "axes": [{"path": "model.norm_placement", "values": ["pre", "post"]}]},
        ],
    }


def write_job(folder: Path, body: dict[str, Any]) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


class Sweep:
    """`fabric sweep` as a process of its own, in a session of its own, with its output in files."""

    def __init__(
        self, job_file: Path, out: Place, *options: str, cwd: Path | None = None, **environment: str
    ):
        self.root = out / "drill"
        number = len(list(job_file.parent.glob("stdout-*.txt")))
        self.out_file = job_file.parent / f"stdout-{number}.txt"
        self.err_file = job_file.parent / f"stderr-{number}.txt"
        # As the installed command does it: a script in a folder of its own, which comes first on the path.
        script = job_file.parent / "bin" / "fabric"
        script.parent.mkdir(exist_ok=True)
        script.write_text("from fabric.cli import main\n\nif __name__ == '__main__':\n    main()\n")
        command = [sys.executable, str(script), "sweep", str(job_file), "--out", str(out), *options]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
        with open(self.out_file, "w") as stdout, open(self.err_file, "w") as stderr:
            self.process = subprocess.Popen(
                command,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd or job_file.parent,
                env={
                    **clean,
                    "PYTHONPATH": paths,
                    "OMP_NUM_THREADS": "1",
                    **environment,
                },
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def store(self) -> Store:
        return Store(self.root)

    @property
    def stdout(self) -> str:
        return self.out_file.read_text()

    @property
    def stderr(self) -> str:
        return self.err_file.read_text()

    def wait(self, timeout: float = 240) -> int:
        """The exit code; the session's other processes are ended too when it takes too long."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"the sweep did not end in {timeout} s\n{self.stderr[-3000:]}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        """Kill it and everything it started."""
        family = descendants(self.pid)
        for pid in [self.pid, *family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def until(self, condition: Callable[[Store], Any], timeout: float = 240) -> Any:
        """Poll the records until `condition` holds; fails when the sweep ends before or it takes too long."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if found := condition(self.store):
                return found
            if self.process.poll() is not None:
                if found := condition(self.store):
                    return found
                raise AssertionError(f"the sweep ended with {self.process.returncode}\n{self.stderr[-3000:]}")
            time.sleep(0.03)
        self.end()
        raise AssertionError(f"not seen in {timeout} s\n{self.stderr[-3000:]}")


@contextlib.contextmanager
def sweeping(*args: Any, **options: Any) -> Iterator[Sweep]:
    """A `Sweep` that is gone, with all it started, when the block ends."""
    process = Sweep(*args, **options)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.end()


def resumed(job_file: Path, out: Place, **options: Any) -> Sweep:
    """The same command once more, to its end."""
    with sweeping(job_file, out, **options) as last:
        assert last.wait(240) == 0, last.stderr[-3000:]
    return last


# -- processes ----------------------------------------------------------------------------------------------------


def _table() -> dict[int, tuple[int, str]]:
    """Every process: pid -> (parent, command line)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(entry.name)] = (parent, command.strip())
    return found


# Ray's helpers of a raylet. After a SIGKILL they ask its gcs for a minute, then end; they train and write nothing.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def descendants(pid: int, agents: bool = True) -> list[int]:
    """All live children of a process and theirs; without Ray's agents if asked."""
    table, found, new = _table(), [], [pid]
    while new:
        new = [p for p, (parent, _) in table.items() if parent in new]
        found += [p for p in new if agents or not table[p][1].startswith(AGENTS)]
    return found


def ray_of(pid: int) -> dict[str, list[int]]:
    """The raylet, gcs and worker processes a driver started."""
    table = _table()
    mine = [(p, table[p][1]) for p in descendants(pid) if p in table]
    return {
        "raylet": [p for p, c in mine if "/raylet/raylet" in c],
        "gcs": [p for p, c in mine if "gcs_server" in c],
        "workers": [p for p, c in mine if c.startswith("ray::")],
    }


def alive(pids: list[int]) -> list[int]:
    """Which of these processes still run (a zombie does not)."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                found.append(pid)
    return found


def gone(pids: list[int], timeout: float = 15) -> bool:
    """Whether all these processes have ended within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while alive(pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def kill_ray(sweep: Sweep) -> None:
    """All of Ray at once: raylet, gcs and every worker."""
    family = ray_of(sweep.pid)
    for pid in family["raylet"] + family["gcs"] + family["workers"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# -- records ------------------------------------------------------------------------------------------------------


def states(store: Store) -> dict[str, str]:
    """Trial id -> its status' state, '' before the first."""
    found = {}
    for trial_id in store.trial_ids():
        last = store.trial(trial_id).status()
        found[trial_id] = last.state if last else ""
    return found


def n_finished(store: Store) -> int:
    return sum(s == "finished" for s in states(store).values())


def running(store: Store) -> list[tuple[str, int]]:
    """(trial, pid) of the attempts that say they run, and whose processes do."""
    found = []
    for trial_id in store.trial_ids():
        record = store.trial(trial_id)
        last = record.status()
        if last and last.state == "running":
            found.append((trial_id, (record.provenance(last.attempt) or {})["pid"]))
    return [(trial_id, pid) for trial_id, pid in found if alive([pid])]


def decision(store: Store, index: int) -> dict[str, Any] | None:
    """A phase's decision, of the only study there is."""
    studies = store.studies()
    return store.study(studies[0], f"decision-{index}") if studies else None


def snapshot(store: Store) -> dict[str, bytes]:
    """Every decision there is, and the finished trials' final words and evaluations, by key."""
    keys = store.objects.list("studies") + [
        k for k in store.objects.list("trials") if "/decisions/" in k or "/evaluations/" in k
    ]
    return {k: store.objects.get(k) or b"" for k in keys if not k.endswith("/used.json")}


def finished_attempts(store: Store) -> dict[str, int]:
    """Finished trial -> its number of attempts."""
    return {t: len(store.trial(t).attempt_numbers()) for t, s in states(store).items() if s == "finished"}


class Ledger:
    """What has been recorded so far; later looks must find it all unchanged."""

    def __init__(self) -> None:
        self.attempts: dict[str, int] = {}
        self.records: dict[str, bytes] = {}

    def look(self, store: Store) -> None:
        attempts, records = finished_attempts(store), snapshot(store)
        for trial, n in self.attempts.items():
            assert attempts.get(trial) == n, f"{trial} was trained again after it had finished"
        for key, body in self.records.items():
            assert records.get(key) == body, f"{key} was written anew"
        self.attempts |= attempts
        self.records |= records


# Wall-clock figures and what depends on how often a trial was interrupted; all else must be equal bit for bit.
_CLOCKED = ("second", "time", "mfu", "memory", "wait", "history")


def table(root: Place) -> str:
    """The results as canonical text, without what a clock or memory meter said."""
    from dataclasses import asdict

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items() if not any(c in str(k) for c in _CLOCKED)}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return repr(value)

    found = results(root)
    body = {"arms": [plain(asdict(a)) for a in found.arms], "decisions": plain(found.decisions)}
    return json.dumps(body, sort_keys=True, indent=1)


def losses(store: Store) -> dict[str, list[tuple[int, Any]]]:
    """Finished trial -> (step, validation loss) of every evaluated row."""
    return {
        t: [(r["step"], r["val_loss"]) for r in store.trial(t).metrics() if "val_loss" in r]
        for t in finished_attempts(store)
    }


def assert_honest(root: Place) -> None:
    """After a driver has gone nothing may be said to run, and what is finished has its final metrics."""
    for s in status(root):
        assert s.state != "running", s
        if s.state == "finished":
            assert s.val_loss is not None, s
