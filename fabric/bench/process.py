"""Fresh Python processes: a command to its end, a function called once, or a side that waits to be asked."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_END = 30.0  # for a Ray of its own to be shut down
_CALLED = "from fabric.bench.process import main; main()"


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with our packages on the path of a Python that is started in it."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **(changes or {})}


def python(*arguments: str, cwd: str | Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments to its end. Raises RuntimeError with what it said when it fails."""
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-3000:]}")
    return done


def fabric(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, as a user starts it."""
    return python("-c", "from fabric.cli import main; main()", *arguments)


def call(function: str, task: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Any:
    """What `function` ("module:name") returns for the keywords `task`, in a process of its own; plain data."""
    with Child(function, task, env) as child:
        return child.first


class Child:
    """A process that runs a generator function: `first` is what it yields first, `ask(x)` sends x and waits.

    Raises RuntimeError with the end of its standard error when it fails.
    """

    def __init__(self, function: str, task: Mapping[str, Any], env: Mapping[str, str] | None = None) -> None:
        self.function = function
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CALLED, function, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment(env),
        )
        try:
            self.first = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, request: Any = None) -> Any:
        """The next value the function yields, after it was sent `request`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._said.seek(0)
        raise RuntimeError(
            f"{self.function} ended with {self._process.returncode}: {self._said.read()[-3000:]}"
        )

    def close(self) -> None:
        """End the process, which reads the end of its input; one that is busy is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def main() -> None:
    """What such a process does: call the function, answer in JSON lines. Whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, name = sys.argv[1].split(":")
    made = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    if not isinstance(made, Generator):
        print(json.dumps(made), file=answers, flush=True)
        return
    with contextlib.closing(made):
        print(json.dumps(next(made)), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(made.send(json.loads(line))), file=answers, flush=True)
