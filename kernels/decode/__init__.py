"""One token of one text through all layers of a decoder in one call, on CPUs; see `models/decoding.py`."""

from kernels.decode.cpu import FIELDS, decode_token

__all__ = ["FIELDS", "decode_token"]
