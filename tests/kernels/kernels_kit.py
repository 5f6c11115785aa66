"""What the tests of kernels share."""

import pytest

from kernels import native

needs_native = pytest.mark.skipif(
    native.library() is None, reason="no C++ compiler, or no AVX2: no kernels of ours here"
)
