"""Kernels: one folder an op; `reference.py` is the definition, the other files are faster forms of it."""

from importlib.metadata import PackageNotFoundError, distribution


def _refuse_namesake() -> None:
    """Raise ImportError when Hugging Face's distribution of the same import name is installed."""
    try:
        distribution("kernels")
    except PackageNotFoundError:
        return
    raise ImportError(
        "the package `kernels` of Hugging Face is installed and has the same import name as fabric's own "
        "`kernels`: run `pip uninstall kernels` in this environment, or install experiment-fabric in a fresh one"
    )


_refuse_namesake()
