"""Files looked at before transformers reads them: what is damaged is named, with what is wrong and the fix."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

AGAIN = "fetch it again, complete"


def check_folder(folder: Path) -> None:
    """Raises ValueError for a folder that is no model, or not a whole one."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise ValueError(f"it {what}; give a Hugging Face folder (with config.json) or a .gguf file")
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            "it holds an adapter of PEFT (adapter_config.json), which changes another model's weights; merge the two "
            "first (merge_and_unload(), then save_pretrained) and give that folder"
        )
    _read_mapping(folder / "config.json")
    for file in _weight_files(folder):
        _check_safetensors(file)


def read_settings(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says; nothing where it cannot be read."""
    try:
        return _read_mapping(folder / "config.json")
    except ValueError:
        return {}


def check_gguf(file: Path) -> gguf.GGUFReader:
    """What the file says of itself. Raises ValueError where it is none, or cut off."""
    if not file.is_file():
        what = "a folder; give the file in it" if file.is_dir() else "not there"
        raise ValueError(f"it is {what}")
    with _opened(file) as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError(f"it is no GGUF file ({_size(file)}): {_otherwise(file)}")
    try:
        reader = gguf.GGUFReader(file)
    except Exception:  # numpy's, of many kinds, about an array whose bytes are not all there
        raise ValueError(f"it is cut off or damaged ({_size(file)}); {AGAIN}") from None
    scaling = next((k for k in reader.fields if ".rope.scal" in k), None)
    if scaling is not None and reader.fields[scaling].contents() not in ("none", None):
        raise ValueError(
            f"its metadata holds a scaling of the rotary positions ({scaling}), which is not read from GGUF files; "
            "use the model's Hugging Face folder"
        )
    return reader


def gguf_left_over(reader: gguf.GGUFReader, names: Iterable[str], n_layers: int) -> list[str]:
    """Tensors of a GGUF file that none of a transformers model's weights is."""
    kind = str(reader.fields["general.architecture"].contents())
    architecture = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    known = gguf.get_tensor_name_map(architecture, n_layers)
    read = {known.get_name(name, (".weight", ".bias")) for name in names}
    return [t.name for t in reader.tensors if t.name not in read]


def refuse_left_over(names: Iterable[str]) -> None:
    """Raise ValueError for weights that the model has no place for; rotary frequencies are none, they are computed."""
    found = sorted(n for n in names if not n.endswith("rotary_emb.inv_freq"))
    if not found:
        return
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    fix = "; without them it would be another model: use the files the model was published as"
    if "rope_freqs.weight" in found:
        what = "rope_freqs.weight, a scaling of the rotary positions that is not read from GGUF files"
        raise ValueError(f"it holds {what}{fix}, its Hugging Face folder")
    raise ValueError(
        f"it holds weights that the model it describes has no place for ({', '.join(found[:4])}{more}){fix}"
    )


def in_one_line(error: Exception) -> str:
    """What a library's error says, without its further lines and addresses."""
    if isinstance(error, ValidationError):
        found = []
        for item in error.errors(include_url=False):
            given = "" if isinstance(item["input"], dict) else f"={item['input']!r}"
            found.append(
                f"{'.'.join(map(str, item['loc']))}{given}: {item['msg'].removeprefix('Value error, ')}"
            )
        return "; ".join(found)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith(
        "Validation error for field"
    ):  # of transformers' configs: the second line says why
        return lines[-1].removeprefix("TypeError: ")
    return f"{type(error).__name__} {lines[0]}" if isinstance(error, KeyError) else lines[0].rstrip(".")


def _weight_files(folder: Path) -> list[Path]:
    """The files transformers would read the weights from."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        pickled = any(folder.glob("*.bin"))
        fix = "write its .bin weights as safetensors (transformers' save_pretrained)" if pickled else AGAIN
        raise ValueError(f"it holds no model.safetensors, nor the index of its parts; {fix}")
    parts = _read_mapping(index).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(isinstance(p, str) for p in parts.values()):
        raise ValueError(f"{index.name} does not say which weight is in which file (weight_map); {AGAIN}")
    files = [folder / name for name in dict.fromkeys(parts.values())]
    if missing := [f.name for f in files if not f.exists()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{missing[0]}{more} of its weights is not there; {AGAIN}")
    return files


def _check_safetensors(file: Path) -> None:
    _opened(file).close()
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError):
        raise ValueError(f"{file.name} is cut off or damaged ({_size(file)}); {_otherwise(file)}") from None


def _read_mapping(file: Path) -> dict[str, Any]:
    with _opened(file) as opened:
        try:
            found = json.loads(opened.read())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file.name} is no JSON ({in_one_line(error)}); {_otherwise(file)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is no mapping of settings to values; {AGAIN}")
    return found


def _opened(file: Path) -> Any:
    try:
        return file.open("rb")
    except OSError as error:
        raise ValueError(f"{file.name}: {error.strerror}; {AGAIN}, or make it readable") from None


def _otherwise(file: Path) -> str:
    with _opened(file) as opened:
        if opened.read(40).startswith(b"version https://git-lfs"):
            return "it is git-lfs's pointer to the file: run `git lfs pull` there"
    return AGAIN


def _size(file: Path) -> str:
    return f"{file.stat().st_size:,} bytes"
