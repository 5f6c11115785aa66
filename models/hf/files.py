"""Models in the field's formats, read from disk: Hugging Face folders, GGUF files, ids on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from models.config import ModelConfig
from models.decoder import CausalLM
from models.hf import convert_config, from_hf
from models.hf.checking import (
    AGAIN,
    check_folder,
    check_gguf,
    gguf_left_over,
    in_one_line,
    read_settings,
    refuse_left_over,
)
from models.hf.native import FabricConfig

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_pretrained(source: Path | str) -> CausalLM:
    """Our model in fp32 with the weights of a folder, a `.gguf` file (a path), or an id on the hub (text).

    Folders may be sharded, and may be of our own class. Raises ValueError naming the source, where it cannot be read,
    its weights are not complete or more than the model has, or ours cannot be that architecture.
    """
    source, reader = _looked_at(source)
    where, options = _place(source)
    # Other shapes are in the report then; the error without it names none.
    options |= {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with only_errors():
            loaded: Any = AutoModelForCausalLM.from_pretrained(where, **options)
    except MemoryError:
        raise
    except Exception as error:  # what a library makes of a strange file is no list of errors
        raise ValueError(f"{source} cannot be read: {_reason(source, error)}{_advice(source)}") from None
    hf_model, report = loaded
    if reader is not None:
        _drop_notes(hf_model.config)
    try:
        model: CausalLM = from_hf(hf_model)
        missing = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(
                "it does not hold all weights of the model it describes; missing or of another shape: "
                f"{', '.join(sorted(missing)[:3])}{more}; {AGAIN}"
            )
        if reader is not None:
            refuse_left_over(gguf_left_over(reader, hf_model.state_dict(), hf_model.config.num_hidden_layers))
        refuse_left_over(report["unexpected_keys"])
    except ValueError as error:
        raise ValueError(f"{source}: {in_one_line(error)}") from None
    return model


def read_config(source: Path) -> ModelConfig:
    """The architecture of the same folder or file, without its weights. Raises ValueError as `read_pretrained`."""
    where, options = _place(source)
    options.pop("use_safetensors", None)
    try:
        _looked_at(source)
        with only_errors(), torch.device("meta"):
            theirs: Any = AutoConfig.from_pretrained(where, **options)
            if isinstance(theirs, FabricConfig):
                return theirs.architecture
            name = type(AutoModelForCausalLM.from_config(theirs)).__name__
        if source.suffix == ".gguf":
            _drop_notes(theirs)
        return convert_config({**theirs.to_dict(), "architectures": [name]})
    except MemoryError:
        raise
    except Exception:  # reading all of it says why, or can
        return read_pretrained(source).config


def _drop_notes(theirs: Any) -> None:
    """What a GGUF file says of itself is no setting; its tensors are dequantised when they are read."""
    for name in ("quantization_config", "_model_name_or_path"):
        theirs.__dict__.pop(name, None)


def read_tokenizer(source: Path | str) -> Any:
    """The transformers tokenizer of the same source. Raises ValueError where it has none that is a tokenizer.json."""
    where, options = _place(source)
    options.pop("use_safetensors", None)
    try:
        with only_errors():
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except MemoryError:
        raise
    except Exception as error:  # as above; `tokenizers` has a bare Exception only
        raise ValueError(f"{source} has no tokenizer that can be read: {in_one_line(error)}") from None
    if not tokenizer.is_fast:
        raise ValueError(
            f"{source} has a tokenizer in Python only ({type(tokenizer).__name__}); convert it to a tokenizer.json"
        )
    return tokenizer


def _looked_at(source: Path | str) -> tuple[Path | str, GGUFReader | None]:
    """The source, a path where it is a folder, and what a GGUF file says. Raises ValueError for a damaged one."""
    if isinstance(source, str):
        if not Path(source).is_dir():  # transformers prefers a folder of that name too
            if not HUB_ID.fullmatch(source):
                raise ValueError(f"{source!r} is no folder, and no id on the Hugging Face hub (OWNER/NAME)")
            return source, None
        source = Path(source)
    try:
        if source.suffix == ".gguf":
            return source, check_gguf(source)
        check_folder(source)
    except ValueError as error:
        raise ValueError(f"{source} cannot be read: {error}") from None
    return source, None


@contextmanager
def only_errors() -> Iterator[None]:
    """Without transformers' progress bars, and its own report of what does not fit, which takes many lines; ours is the
    error."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(max(before, logging.ERROR))
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _reason(source: Path | str, error: Exception) -> str:
    """What ours refuses in a config.json, which says more than what the library stumbled over; else the latter."""
    settings = read_settings(source) if isinstance(source, Path) else {}
    if settings and settings.get("model_type") != FabricConfig.model_type:
        try:
            convert_config(settings)
        except ValueError as refused:
            return in_one_line(refused)
    return in_one_line(error)


def _place(source: Path | str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is told."""
    if isinstance(source, str):
        return source, {"use_safetensors": True}
    if source.suffix == ".gguf":
        return str(source.parent), {"gguf_file": source.name, "local_files_only": True}
    return str(source), {"use_safetensors": True, "local_files_only": True}


def _advice(source: Path | str) -> str:
    if isinstance(source, Path):
        return ""
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        f". The Hugging Face hub was asked{offline}: check the id and the network, or fetch the model elsewhere "
        "(huggingface-cli download ID --local-dir FOLDER) and give its folder"
    )
