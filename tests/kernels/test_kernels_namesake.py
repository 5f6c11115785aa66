"""Another distribution is imported as `kernels` too."""

import subprocess
import sys


def test_import_fails_where_the_namesake_is_installed(tmp_path):
    metadata = tmp_path / "kernels-0.10.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.10.0\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import kernels"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the package `kernels` of Hugging Face is installed")
    assert "pip uninstall kernels" in last


def test_import_succeeds_and_is_light():
    code = "import sys, kernels; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
