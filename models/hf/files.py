"""Models in the field's formats, read from disk: Hugging Face folders, GGUF files, ids on the hub."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.decoder import CausalLM
from models.hf import from_hf


def read_pretrained(source: Path | str) -> CausalLM:
    """Our model in fp32 with the weights of a folder, a `.gguf` file (a path), or an id on the hub (text).

    Folders may be sharded, and may be of our own class. Raises ValueError naming the source, where it cannot be read,
    its weights are not complete, or ours cannot be that architecture.
    """
    where, options = _place(source)
    options |= {"dtype": torch.float32, "output_loading_info": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, struct.error) as error:
        raise ValueError(f"{source} cannot be read: {_first_line(error)}{_advice(source)}") from None
    hf_model, report = loaded
    missing = sorted(report["missing_keys"]) or sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise ValueError(
            f"{source} does not hold all weights its config.json asks for: {', '.join(missing[:3])} "
            f"({len(missing)} in all) are missing or of another shape; fetch it again, complete"
        )
    if "gguf_file" in options:  # its tensors are dequantised by now; what it says of itself is no setting
        for name in ("quantization_config", "_model_name_or_path"):
            hf_model.config.__dict__.pop(name, None)
    try:
        return from_hf(hf_model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def read_tokenizer(source: Path | str) -> Any:
    """The transformers tokenizer of the same source. Raises ValueError where it has none that is a tokenizer.json."""
    where, options = _place(source)
    options.pop("use_safetensors", None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{source} has no tokenizer that can be read: {_first_line(error)}") from None
    if not tokenizer.is_fast:
        raise ValueError(
            f"{source} has a tokenizer in Python only ({type(tokenizer).__name__}); convert it to a tokenizer.json"
        )
    return tokenizer


def _place(source: Path | str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is told."""
    if isinstance(source, str):
        return source, {"use_safetensors": True}
    if source.suffix == ".gguf":
        return str(source.parent), {"gguf_file": source.name, "local_files_only": True}
    return str(source), {"use_safetensors": True, "local_files_only": True}


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _advice(source: Path | str) -> str:
    if isinstance(source, Path):
        return ""
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        f". The Hugging Face hub was asked{offline}: check the id and the network, or fetch the model elsewhere "
        "(huggingface-cli download ID --local-dir FOLDER) and give its folder"
    )
