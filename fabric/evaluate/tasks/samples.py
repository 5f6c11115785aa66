"""Texts drawn from the model."""

from __future__ import annotations

from fabric.evaluate.sample_quality import SampleTask

TASKS = (
    SampleTask(name="samples", about="how varied texts drawn from the model are; they are kept to be read"),
)
