"""lm-evaluation-harness (EleutherAI) on our models: any of its tasks, by its own definitions and filters.

Likelihoods come from `fabric.evaluate.likelihood`, so what requests begin with is computed once; contexts that are too
long lose their beginning, as its own `hf` model does it. Text is generated greedily or with its task's temperature, in
batches without padding (`fabric.evaluate.decoding`).
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fabric.evaluate.decoding import Drawing, continuations
from fabric.evaluate.generation import has_ended, text_of
from fabric.evaluate.likelihood import Request, fitted, likelihoods
from fabric.evaluate.perplexity import rolling, window_nats
from fabric.evaluate.scores import share
from models.parts import meant

if TYPE_CHECKING:
    from fabric.evaluate.subject import Subject

MAX_NEW_TOKENS = 256  # of a task that says nothing, as its own models do it
SHARES = "acc", "acc_norm"  # of right options: its metrics that guessing has a level in


@dataclass(frozen=True)
class Harnessed:
    """What the harness says of one of its tasks: metrics by name (with the filter's: `exact_match,strict-match`),
    their standard errors where it has them, and the number of items. Of a choice among options, `chance` is the share
    that a guesser gets right, and the interval that it stays in 95 times of 100. `path`: the file that keeps it."""

    target: str
    task: str
    version: str
    n_items: int
    metrics: dict[str, float]
    standard_errors: dict[str, float]
    chance: tuple[float, float, float] | None = None
    path: str | None = None

    def is_chance(self, metric: str) -> bool:
        """Whether a guesser has such a score too."""
        if self.chance is None or metric.split(",")[0] not in SHARES:
            return False
        return self.chance[1] <= self.metrics[metric] <= self.chance[2]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class HarnessTasks:
    """Names of the harness's tasks, and what it knows them by."""

    names: tuple[str, ...]
    manager: Any


def harness_tasks(names: Sequence[str]) -> HarnessTasks:
    """What is asked of the harness: its own tasks and groups by name, and paths of a task's YAML or of folders of them.

    Raises ValueError where the harness is not installed, and for a name that it does not know, with the nearest ones.
    """
    folders = [
        str(Path(n).parent if Path(n).suffix in (".yaml", ".yml") else n) for n in names if _is_path(n)
    ]
    manager = _manager(folders, with_its_own=len(folders) < len(names))
    known = manager.all_tasks
    wanted: list[str] = []
    for name in names:
        if _is_path(name):
            wanted += _tasks_in(Path(name), manager)
        elif name in known:
            wanted.append(name)
        else:
            hint = meant(name, known)
            raise ValueError(
                f"lm-evaluation-harness has no task {name!r}{hint} (`lm-eval ls tasks` lists them; a path may be given)"
            )
    return HarnessTasks(tuple(dict.fromkeys(wanted)), manager)


def run_harness(
    subject: Subject, target: str, asked: HarnessTasks, *, limit: int | None, seed: int
) -> list[Harnessed]:
    """The harness's results of what `harness_tasks` found. Raises ValueError for data it cannot get or read, and for a
    task that needs a package which is not installed."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from lm_eval import simple_evaluate

    try:
        with _quietly():
            found: Any = simple_evaluate(
                model=harness_model(subject),
                tasks=list(asked.names),
                task_manager=asked.manager,
                limit=limit,
                bootstrap_iters=1000,
                fewshot_random_seed=seed,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
            )
    except ImportError as error:
        raise ValueError(f"{', '.join(asked.names)}: {error}") from None
    except (OSError, DatasetsError, TemplateError, KeyError) as error:
        said = (
            f"there is no field {error}"
            if isinstance(error, KeyError)
            else str(error) or type(error).__name__
        )
        raise ValueError(
            f"lm-evaluation-harness cannot get or read the data of {', '.join(asked.names)}: {said}"
        ) from None
    return [
        Harnessed(
            target,
            name,
            str(found["versions"].get(name, "")),
            int(found["n-samples"].get(name, {}).get("effective", 0)),
            # Its metrics are named with their filters: `acc,none`.
            {k: float(v) for k, v in row.items() if "," in k and _is_number(v) and "_stderr" not in k},
            {k.replace("_stderr", ""): float(v) for k, v in row.items() if _is_number(v) and "_stderr" in k},
            _chance(found["configs"].get(name, {}), found["samples"].get(name, ())),
        )
        for name, row in found["results"].items()
    ]


def _chance(
    config: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> tuple[float, float, float] | None:
    """Of a choice among options, each as often right for a guesser as any other."""
    if config.get("output_type") != "multiple_choice" or not samples:
        return None
    score = share([False] * len(samples), [1 / len(s["arguments"]) for s in samples])
    return float(score.chance or 0), float(score.chance_low or 0), float(score.chance_high or 0)


def harness_model(subject: Subject) -> Any:
    """An `lm_eval.api.model.LM` on a subject. Raises ValueError where the harness is not installed."""
    _needs_harness()
    from lm_eval.api.model import TemplateLM

    class FabricLM(TemplateLM):
        """Our model as the harness asks it."""

        @property
        def eot_token_id(self) -> int:
            return int(subject.trained.tokenizer.eos_id)

        @property
        def prefix_token_id(self) -> int:
            return subject.first_id

        @property
        def max_length(self) -> int:
            return subject.max_seq_len

        @property
        def tokenizer_name(self) -> str:
            return "fabric"

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return encoded(subject, string, add_special_tokens)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            asked = [
                fitted(Request(tuple(context), tuple(continuation)), subject.max_seq_len)
                for _, context, continuation in requests
            ]
            found = likelihoods(subject.model, asked, precision=subject.precision)
            return [(x.nats, x.is_greedy) for x in found]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return [-text_nats(subject, *request.args) for request in requests]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return generated(subject, [request.args for request in requests])

    return FabricLM()


def encoded(subject: Subject, text: str, add_special_tokens: bool | None = None) -> list[int]:
    """A text's ids as the harness' own model makes them: where nothing is said, with what the tokenizer puts before
    a text (Llama's <s>), unless it stands there."""
    theirs = subject.trained.hf_tokenizer
    if theirs is None:
        return subject.trained.tokenizer.encode(text)
    if add_special_tokens is None:
        add_special_tokens = not text.startswith(theirs.decode([subject.first_id]))
    return list(theirs.encode(text, add_special_tokens=add_special_tokens))


def text_nats(subject: Subject, text: str) -> float:
    """Negative log-likelihood of a text in disjoint windows of the model's length."""
    ids = encoded(subject, text)
    if not ids:
        return 0.0
    windows = list(rolling(ids, subject.first_id, subject.max_seq_len, subject.max_seq_len))
    return sum(window_nats(subject, windows))


@dataclass(frozen=True)
class Wanted:
    """How a request's text is generated."""

    stops: tuple[str, ...]
    n_new: int
    temperature: float
    top_p: float | None


def wanted(options: Mapping[str, Any]) -> Wanted:
    """A request's `generation_kwargs`. Raises ValueError for one that would be left out of account."""
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    left: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS))
    stops = tuple(handle_stop_sequences(left.pop("until", None), eos=None))
    is_drawn, n_new = bool(left.pop("do_sample", False)), int(left.pop("max_gen_toks"))
    temperature, top_p = float(left.pop("temperature", 0.0)), left.pop("top_p", None)
    neutral = {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}
    # Greedy, what is cut off the likely tokens does not matter.
    other = {
        k: v for k, v in left.items() if v != neutral.get(k) and (is_drawn or k not in ("top_k", "min_p"))
    }
    if is_drawn and not temperature:
        other["do_sample"] = "True without a temperature"
    if other:
        raise ValueError(
            f"the task generates with {', '.join(f'{k}={v}' for k, v in other.items())}; ours takes until, "
            "max_gen_toks, do_sample, temperature and top_p: leave the task out, or change a copy of its YAML"
        )
    return Wanted(stops, n_new, temperature if is_drawn else 0.0, top_p if is_drawn else None)


def generated(subject: Subject, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What follows on each context until one of the strings `until`, without it; those asked alike go together.

    Raises ValueError where the new tokens leave no room for a context, before any text is generated.
    """
    alike: dict[Wanted, list[int]] = {}
    for i, (_, options) in enumerate(requests):
        alike.setdefault(wanted(options), []).append(i)
    for how in alike:
        if how.n_new >= subject.max_seq_len:
            raise ValueError(
                f"the task generates {how.n_new} tokens, the model takes {subject.max_seq_len} with the prompt; "
                "use a model with a longer context"
            )
    tokenizer, texts = subject.trained.tokenizer, [""] * len(requests)
    for how, mine in alike.items():
        room = subject.max_seq_len - how.n_new
        prompts = [(encoded(subject, requests[i][0]) or [subject.first_id])[-room:] for i in mine]
        found = continuations(
            subject.model,
            prompts,
            how.n_new,
            partial(has_ended, tokenizer, how.stops),
            Drawing(how.temperature, how.top_p, torch.initial_seed()),
            precision=subject.precision,
        )
        for i, new in zip(mine, found, strict=True):
            texts[i] = text_of(tokenizer, new, how.stops)
    return texts


def _is_path(name: str) -> bool:
    """A folder's bare name is one where the folder holds tasks; a task's name may be a folder's too."""
    return "/" in name or name.endswith((".yaml", ".yml")) or any(Path(name).glob("*.yaml"))


def _tasks_in(path: Path, manager: Any) -> list[str]:
    """The names of the tasks of a YAML file, or of a folder's."""
    if not path.exists():
        raise ValueError(f"{path} is not there: give a task's YAML file, a folder of them, or a task's name")
    files = [path] if path.is_file() else sorted(path.rglob("*.yaml"))
    wanted = {str(f.resolve()) for f in files}
    found = [
        name
        for name, entry in manager.task_index.items()
        if str(Path(str(entry.yaml_path)).resolve()) in wanted
    ]
    if not found:
        raise ValueError(
            f"{path} holds no task of lm-evaluation-harness (a file that ends in .yaml, with `task:`)"
        )
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _manager(folders: Sequence[str], with_its_own: bool) -> Any:
    """Its own tasks take ten seconds to be looked through, once a process where no folder is named beside them."""
    _needs_harness()
    return _made(tuple(folders), with_its_own) if folders else _its_own()


@cache
def _its_own() -> Any:
    return _made((), with_its_own=True)


def _made(folders: tuple[str, ...], with_its_own: bool) -> Any:
    from lm_eval.tasks import TaskManager

    with _quietly():
        return TaskManager(include_path=list(folders) or None, include_defaults=with_its_own)


def _needs_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise ValueError(
            "lm-evaluation-harness is not installed: pip install 'experiment-fabric[eval]'"
        ) from None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without its log lines and progress bars, with nothing of its on stdout, and its bootstraps in this process: the
    processes it would fork have the model in them."""
    import logging

    logger = logging.getLogger("lm_eval")
    names = "TQDM_DISABLE", "DISABLE_MULTIPROC"
    level, before = logger.level, {name: os.environ.get(name) for name in names}
    logger.setLevel(logging.ERROR)
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
