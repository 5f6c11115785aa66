"""Optimizers: what their libraries say when they are imported."""

import logging
import subprocess
import sys

from fabric.train.optimizers.adamw8bit import _is_news

LIBRARY = "bitsandbytes.backends.cpu.ops"


def record(message, *arguments):
    return logging.LogRecord(LIBRARY, logging.WARNING, "ops.py", 1, message, arguments, None)


def test_8_bit_adamw_is_imported_without_a_word():
    # On any CPU: the library tries for its kernel where there is bf16 in AVX-512.
    code = f"""
import logging, sys
from fabric.train.optimizers.adamw8bit import _bitsandbytes
class Loads:
    def find_spec(self, name, path=None, target=None):
        if name == "bitsandbytes":
            try:
                from kernels import get_kernel
            except Exception as error:
                text = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please"
                logging.getLogger("{LIBRARY}").warning(text, error)
sys.meta_path.insert(0, Loads())
_bitsandbytes()
logging.getLogger("{LIBRARY}").warning("other")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "other\n")


def test_only_the_missing_namesake_is_kept_quiet():
    text = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure …"
    assert not _is_news(record(text, "cannot import name 'get_kernel' from 'kernels' (…)"))
    assert _is_news(record(text, "no network"))
    assert _is_news(record("something else from 'kernels'"))
