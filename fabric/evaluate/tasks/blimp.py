"""BLiMP (Warstadt et al. 2020, arXiv 1912.00582): 67 paradigms of minimal pairs; the headline is their mean."""

from __future__ import annotations

from fabric.data.rows import Table
from fabric.evaluate.options import OptionTask

BLIMP = OptionTask(
    name="blimp",
    about="which of two sentences is grammatical",
    rows=Table(("blimp", "blimp/data")),
    prompt=lambda row: "",
    options=lambda row: (row.text("sentence_good"), row.text("sentence_bad")),
    answer=lambda row: 0,
    group=lambda row: row.text("UID"),
    mean_of_groups=True,
    score="sum",
)
TASKS = (BLIMP,)
