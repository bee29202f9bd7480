"""Ids that another program made, in files that are mapped into memory and never read whole.

Bare ids (nanoGPT's train.bin, val.bin), or ids after a header of 256 int32 (llm.c,
modded-nanogpt): magic number, version, number of ids.

The model's documents begin at token 0, so `eos` and 0 change places as ids are read. Files whose
name says val or validation are the held-out set; without any it is the end of the last file or
files, from a document's beginning on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from transformer import spec
from transformer.config import Config
from transformer.data import batches
from transformer.data.corpus import matches
from transformer.errors import UserError

_HEADER = 256 * 4  # bytes
_MAGIC = {20240520: np.uint16, 20240801: np.uint32}  # llm.c's data for GPT-2 and for Llama 3
_SAMPLES, _BLOCK = 64, 4096  # of a file, for its digest: places, and ids at each
_VAL = re.compile(r'(?i)(^|[^a-z])val(id(ation)?)?([^a-z]|$)')  # not interval, nor retrieval
_STRETCH = 2**20  # ids looked through at a time


def tokens(declared: Any, config: Config) -> batches.Data:
  """The files' ids as batches. There is no text, so nothing is told per byte.

  Raises UserError for files that cannot be, or ids past --model.vocab_size.
  """
  source, vocab = spec.canonical(declared), config.model.vocab_size
  flag = f'--data.source={source}'
  paths = matches(declared.glob, source)
  if declared.eos >= vocab:
    raise UserError(
      f'{flag}: eos={declared.eos} is not below --model.vocab_size={vocab}; name the id that ends '
      f"documents, as in tokens('{declared.glob}', eos=0), or eos=-1 if none does"
    )
  if declared.bytes not in (0, 2, 4):
    raise UserError(f'{flag}: bytes={declared.bytes} should be 2 or 4, or 0 to go by vocabulary')
  dtype = {0: batches.token_type(vocab), 2: np.uint16, 4: np.uint32}[declared.bytes]
  streams = [_map(path, dtype, flag) for path in paths]
  recode = _recode(declared.eos, vocab, flag)
  samples = [_sample(stream) for stream in streams]
  for path, sample in zip(paths, samples, strict=True):
    recode(sample.astype(np.int64), path)
  train, held_out, by = _split(paths, streams, declared.eos, config.data.held_out)
  length, size = config.data.seq_len, config.data.batch_size
  counts = [sum(map(len, side)) for side in (train, held_out)]
  rows = batches.Rows(train, length)
  batches.check_size(rows, counts[0], source, size, length)
  if not any(len(stream) > 1 for stream in held_out):
    raise UserError(f'{flag}: nothing is left to hold out; name more files')
  digest = _digest(paths, streams, samples, [declared.eos, by, *counts])
  return batches.Data(
    info=dict(
      source='tokens',
      files=len(paths),
      eos=declared.eos,
      vocab_size=vocab,
      train_tokens=counts[0],
      held_out_tokens=counts[1],
      held_out_bytes=0,
      held_out=by,
    ),
    fingerprint=batches.fingerprint(digest, length),
    tokenizer=None,
    held_out_bytes=0,
    batch_size=size,
    seq_len=length,
    train=tuple(train),
    held_out=tuple(held_out),
    order=batches.grain_order(len(rows), config.seed),
    recode=recode,
  )


def _map(path: str, dtype: type, flag: str) -> np.ndarray:
  """The ids of a file, memory-mapped. Raises UserError if it cannot hold ids."""
  try:
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
      start = file.read(_HEADER)
    if len(start) == _HEADER and int.from_bytes(start[:4], 'little') in _MAGIC:
      magic, _, count = np.frombuffer(start, '<i4')[:3]
      dtype, offset = np.dtype(_MAGIC[int(magic)]), _HEADER
      if size != _HEADER + count * dtype.itemsize:
        raise UserError(
          f'{flag}: {path} says it holds {count:,} ids, and has {size - _HEADER:,} bytes of them; '
          'it was cut short or is of another kind'
        )
    else:
      dtype, offset = np.dtype(dtype), 0
    if size % dtype.itemsize or size == offset:
      raise UserError(
        f'{flag}: {path} has {size:,} bytes, which are no ids of {dtype.itemsize} bytes each'
      )
    return np.memmap(path, dtype.newbyteorder('<'), 'r', offset).view(np.ndarray)
  except OSError as e:
    raise UserError(f'{flag}: {path} cannot be read ({e.strerror})') from None


def _recode(eos: int, vocab: int, flag: str) -> Callable[..., np.ndarray]:
  """Turns stored ids into the model's, in place."""

  def recode(ids: np.ndarray, path: str = 'a file') -> np.ndarray:
    if eos < 0:
      ids += 1
    else:
      ends, zeros = ids == eos, ids == 0
      ids[zeros] = eos
      ids[ends] = 0
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
      worst = int(ids.max()) - (eos < 0)
      raise UserError(
        f'{flag}: {path} holds id {worst}; with --model.vocab_size={vocab} '
        f'the highest is {vocab - 1 - (eos < 0)}'
      )
    return ids

  return recode


def _split(
  paths: list[str], streams: list[np.ndarray], eos: int, share: float
) -> tuple[list[np.ndarray], list[np.ndarray], str]:
  """Streams to train on, streams held out, and by what rule."""
  val = [bool(_VAL.search(Path(path).name)) for path in paths]
  if any(val) and not all(val):
    sides = zip(val, streams, strict=True)
    train, held_out = [], []
    for is_val, stream in sides:
      (held_out if is_val else train).append(stream)
    return train, held_out, 'files named val'
  cut = int(sum(map(len, streams)) * (1 - share))
  for k, stream in enumerate(streams):
    if cut < len(stream) or k == len(streams) - 1:
      break
    cut -= len(stream)
  end = _next(stream, eos, cut)
  by = 'the last tokens' if end is None else 'the last documents'
  cut = cut if end is None else end
  first, last = stream[: cut + 1], stream[cut:]  # the end of one document begins the next
  return [*streams[:k], first], [last, *streams[k + 1 :]], by


def _next(stream: np.ndarray, eos: int, start: int) -> int | None:
  """Where `eos` comes next from `start` on, with a document after it; None if it does not."""
  if eos < 0:
    return None
  for k in range(start, len(stream), _STRETCH):
    found = np.flatnonzero(stream[k : k + _STRETCH] == eos)
    if len(found) and k + found[0] < len(stream) - 1:
      return k + int(found[0])
  return None


def _sample(stream: np.ndarray) -> np.ndarray:
  """Ids of 64 places, evenly spread from the first to the last; of a small file, all."""
  if len(stream) <= _SAMPLES * _BLOCK:
    return np.array(stream)
  starts = np.linspace(0, len(stream) - _BLOCK, _SAMPLES).astype(np.int64)
  return np.concatenate([stream[k : k + _BLOCK] for k in starts])


def _digest(
  paths: list[str], streams: list[np.ndarray], samples: list[np.ndarray], how: list
) -> str:
  """Of names, sizes and samples: 100 GB cannot be read at every start.

  An edit in place that no sample meets goes unseen; a copy under the same names is the same data.
  """
  total = hashlib.sha256(json.dumps(how).encode())
  for path, stream, sample in zip(paths, streams, samples, strict=True):
    total.update(f'{Path(path).name} {len(stream)} {stream.dtype}'.encode() + sample.tobytes())
  return total.hexdigest()
