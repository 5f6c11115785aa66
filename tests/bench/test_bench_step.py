"""The step bench: both sides compute the same, what disagrees raises, and a profile accounts for its time."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fabric.bench import bench
from fabric.bench.measure import Setting
from fabric.bench.process import Child, call
from fabric.bench.step import SIZES, agreement, sides, training

QUICK = ["eager", "fp32"]


def test_sides_have_the_shapes_they_say():
    full = [training(size, "ours", "fp32", False, 1) for size in SIZES]
    assert {side.tokens for side in full} == {2048}
    assert [side.model["ffn"]["d_ff"] for side in full[::2]] == [320, 704, 1536]
    assert [side.model["mixer"]["n_heads"] for side in full[::2]] == [4, 4, 9]
    rows = full[0].rows_BT1(3)
    assert rows.shape == (8, 257)
    assert bool((rows == full[0].rows_BT1(3)).all())
    assert bool((rows != full[0].rows_BT1(4)).any())
    assert 0 <= int(rows.min()) < int(rows.max()) < 4096


def test_parts_choose_the_sides():
    assert len(sides("64x32", Setting(1, Path()), 1)) == 8
    chosen = sides("64x32", Setting(1, Path(), only=("eager", "bf16")), 1)
    assert list(chosen) == ["ours bf16 eager", "theirs bf16 eager"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "step",
            {"only": ["256x255"]},
            "no part '256x255'; did you mean '256x256'.*there are 64x32, 128x256",
        ),
        ("warm", {"only": ["eager"]}, "bench warm is measured whole"),
        ("warm", {"profile": True}, "bench warm has no profile; these have one: step"),
    ],
)
def test_what_a_bench_does_not_have(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        bench(name, **arguments)


def test_sides_that_disagree_raise():
    first = {"loss": [8.0, 7.0], "norm": [1.0, 2.0]}
    near = {"loss": [8.0, 7.0005], "norm": [1.0005, 2.0]}
    far = {"loss": [8.0, 7.01], "norm": [1.0, 2.0]}
    apart = agreement({"ours fp32 eager": near, "theirs fp32 eager": first, "theirs bf16 eager": far})
    assert apart["theirs fp32 eager"]["loss"] == pytest.approx(0.0005 / 7.0005)
    with pytest.raises(
        RuntimeError, match="theirs fp32 eager does not compute .* 1.4e-03 apart where 0.0001"
    ):
        agreement({"ours fp32 eager": first, "theirs fp32 eager": far})
    with pytest.raises(RuntimeError, match="its speed says nothing"):
        agreement({"ours fp32 eager": first, "ours fp32 compiled": {**first, "loss": [8.0, float("nan")]}})


@pytest.mark.slow
def test_quick_runs(tmp_path):
    lines: list[str] = []
    found = bench("step", repeats=2, out=tmp_path, quick=True, only=QUICK, progress=lines.append)
    assert set(found["figures"]) == {
        "64x32 fp32: ours over theirs eager",
        "64x32 fp32: share of the matmul peak",
    }
    assert any("theirs fp32 eager: ready" in line for line in lines)
    apart = found["apart"]["64x32"]["theirs fp32 eager"]
    assert 0 < apart["loss"] + apart["norm"] < 1e-3, "different programs, the same numbers"
    assert found["versions"]["transformers"]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("FABRIC_SLOW"), reason="compiles for minutes; FABRIC_SLOW=1 runs it")
def test_quick_runs_with_the_compiler(tmp_path):
    found = bench("step", repeats=1, out=tmp_path, quick=True)
    assert len(found["apart"]["64x32"]) == 8
    warm, cold = (found["figures"][f"64x32 compiling, {k}"]["sides"] for k in ("warm", "cold"))
    assert set(warm) == {"ours fp32 compiled", "ours bf16 compiled"}
    assert all(warm[k]["median"] < cold[k]["median"] for k in warm)


@pytest.mark.slow
def test_a_profile_accounts_for_its_time(tmp_path):
    found = bench("step", out=tmp_path, quick=True, only=QUICK, profile=True)
    assert found["figures"] == {}
    assert list(found["profiles"]) == ["64x32 ours fp32 eager", "64x32 theirs fp32 eager"]
    by_suffix = {Path(f).suffix: Path(f) for f in found["files"] if "ours" in f}
    ElementTree.parse(by_suffix[".svg"])
    with by_suffix[".csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["operator", "self_ms", "calls", "share"]
    assert sum(float(r["share"]) for r in rows) == pytest.approx(1.0, abs=0.02)
    in_table = sum(float(r["self_ms"]) for r in rows)
    stacks = [line.rsplit(" ", 1) for line in by_suffix[".folded"].read_text().splitlines()]
    assert sum(int(cost) for _, cost in stacks) / 1e3 == pytest.approx(in_table, rel=0.05)
    assert any(path.startswith("forward and backward;") for path, _ in stacks)


def test_a_process_answers_and_tells_why_it_failed():
    task = {"threads": 1, "size": 8, "times": 1}
    with Child("fabric.bench.training:matmul_speed", task) as child:
        assert child.first is None
        assert child.ask("fp32") > 0
        assert child.ask("bf16") > 0
    with pytest.raises(RuntimeError, match=r"ended with 1: (?s:.*)negative dimension"):
        call("fabric.bench.training:matmul_speed", {**task, "size": -1})
