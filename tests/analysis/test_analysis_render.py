"""Tables in any width without a folded name, files, and pictures."""

import csv
import json

import pytest
from analysis_kit import phase_rows, row, run_study
from rich.console import Console

import fabric
from fabric.analysis.plot import plot, plot_scaling
from fabric.analysis.render import to_csv, to_json, to_parquet
from fabric.analysis.scaling import scaling_of
from fabric.analysis.table import aggregate
from fabric.analysis.terminal import to_markdown, to_rich
from fabric.printing import print_results, results_json

CROSSED = {
    "norm_placement=pre + qk_norm=none": 3.0,
    "norm_placement=pre + qk_norm=head": 2.95,
    "norm_placement=sandwich + qk_norm=none": 3.1,
    "norm_placement=sandwich + qk_norm=head": 3.001,
}
LONG = {"mha": 3.0, "grouped-queries-with-a-name-that-is-far-too-long-for-anything": 2.9}
STUDY = [*phase_rows("qk", CROSSED, 3), *phase_rows("names", LONG)]
ROWS = aggregate(STUDY, {"qk": next(iter(CROSSED)), "names": "mha"})


def text_of(rows, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_rich(rows))
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_every_arm_is_one_line(width):
    lines = text_of([r for r in ROWS if r.phase == "qk"], width).splitlines()
    assert max(map(len, lines)) <= width
    for name in ("pre + none", "pre + head", "sandwich + none", "sandwich + head"):
        mine = [line for line in lines if line.startswith(name)]
        assert len(mine) == 2, f"{name}: one line of results and one of costs"
        number = next(r for r in ROWS if r.arm.replace("norm_placement=", "").replace("qk_norm=", "") == name)
        assert f"{number.result.mean:.4f}" in mine[0] or width == 60
    assert any("better" in line for line in lines)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_names_that_cannot_fit_are_cut_not_folded(width):
    lines = text_of([r for r in ROWS if r.phase == "names"], width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("grouped-") for line in lines) == 2
    assert width < 100 or any("better" in line for line in lines)


def test_constant_columns_move_to_the_caption():
    text = text_of([r for r in ROWS if r.phase == "qk"], 120)
    assert "in every arm: rate 4e-3, 264k parameters, 512 B of state a token" in text
    assert "params" not in text


def test_widths_say_more_or_less():
    wide, narrow = text_of(ROWS[:4], 140), text_of(ROWS[:4], 70)
    assert "difference [interval]" in wide
    assert "difference [interval]" not in narrow
    assert "±" in narrow


def test_no_trials():
    assert "no trials yet" in text_of([], 80)
    assert to_markdown([]) == "no trials yet\n"


def test_markdown_is_a_table_with_the_winner_bold():
    text = to_markdown(ROWS)
    assert "| norm_placement + qk_norm | n |" in text
    assert "| **pre + head** | 3 |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") > 4 for line in rows)


def test_files_hold_every_row(tmp_path):
    import pyarrow.parquet as pq

    to_csv(ROWS, tmp_path / "x.csv")
    to_parquet(ROWS, tmp_path / "x.parquet")
    rows = json.loads(to_json(ROWS, tmp_path / "x.json"))
    assert json.loads((tmp_path / "x.json").read_text()) == rows
    with open(tmp_path / "x.csv") as file:
        lines = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [r["arm"] for r in rows] == [r["arm"] for r in lines] == [r["arm"] for r in table]
    assert [r["mean"] for r in rows] == [float(r["mean"]) for r in lines] == [r["mean"] for r in table]
    assert [r["winner"] for r in rows] == [r.winner for r in ROWS]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_printed_results_end_in_the_winner_and_what_is_adopted(tmp_path, width):
    norms = {"path": "model.norm_placement", "values": ["pre", "post", "sandwich"]}
    search = {"mode": "phases", "seeds": 3, "phases": [{"name": "norm", "axes": [norms]}]}
    run_study(tmp_path, search, lambda t: 3.0 + 0.01 * t.seed - ("post" in t.arm))
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    found = fabric.results(tmp_path)
    print_results(found, console)
    lines = console.export_text().splitlines()
    assert (
        lines[-2]
        == "winner: norm_placement=post (phase norm, val_loss 2.0100 over 3 seeds, test_loss 2.0200)"
    )
    assert lines[-1] == "adopted: model.norm_placement=post, learning rate 4e-3"
    body = json.loads(results_json(found))
    assert body["adopted"] == {"model.norm_placement": "post"}
    assert body["scaling"] is None


def test_pictures_are_written(tmp_path):
    stopped = row("stopped", 0, 3.3, phase="names", state="stopped", reason={"kind": "stopped"})
    rows = aggregate([*STUDY, stopped], {"qk": next(iter(CROSSED)), "names": "mha"})
    for ending, head in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        plot(rows, tmp_path / f"x.{ending}")
        assert (tmp_path / f"x.{ending}").read_bytes().startswith(head)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot([], tmp_path / "none.png")


def test_the_scaling_picture(tmp_path):
    rows = [
        row(f"w{n}", s, 1.5 + 60 * n**-0.4 + 0.001 * s, n_params=n)
        for n in (9_000, 20_000, 50_000, 120_000, 300_000)
        for s in range(2)
    ]
    scaling, why = scaling_of(aggregate(rows, {"p": "w9000"}))
    assert why is None
    plot_scaling(scaling, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "inside" in scaling.lines()[1]
