"""Documents to two packed streams of tokens on disk, made once and memory-mapped ever after."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from transformer import spec
from transformer.config import Config
from transformer.data import batches, cache, tokenizers
from transformer.errors import UserError

_FORMAT = 1  # of the cache; raised when what is written for the same input changes
# With this salt a tenth by hash is 9.2 % of the standard library's text on Python 3.11 and 9.8 % on
# 3.12, in 22 packages (asyncio or idlelib alone, as other salts have it, would be half of it).
_SALT = '1:'


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Text to pack."""

  state: Any  # JSON, cheap to find, different whenever the documents may differ
  info: dict[str, Any]  # for Data.info
  documents: Callable[[], Iterator[tuple[str, str]]]  # (group, text); a group is held out whole


def data(corpus: Corpus, config: Config) -> batches.Data:
  """Opens the packed streams of `corpus`, made first if the cache has none of this state.

  Raises UserError if the text does not make one batch, or the cache cannot be used.
  """
  declared = spec.parse('data.tokenizer', config.data.tokenizer)
  key = json.dumps([_FORMAT, corpus.state, config.data.tokenizer, config.data.held_out])
  name = f'{corpus.info["source"]}-{declared.variant}-{_digest(key)}'
  folder = cache.once(
    cache.root(config.data.cache) / 'tokens' / name,
    lambda partial: _pack(partial, corpus, declared, config),
  )
  try:
    info = json.loads((folder / 'info.json').read_text())
    train, held_out = (_open(folder / f'{part}.npy') for part in ('train', 'held_out'))
    tokenizer = tokenizers.load(folder / 'tokenizer.json')
  except (OSError, ValueError) as e:
    raise UserError(f'--data.cache: {folder} is damaged ({e}); delete that folder') from e
  batch, length = config.data.batch_size, config.data.seq_len
  if len(train) < batch * length + 1:
    raise UserError(
      f'--data.source={config.data.source}: {len(train):,} training tokens; one batch of '
      f'--data.batch_size={batch} rows of --data.seq_len={length} needs {batch * length + 1:,}'
    )
  return batches.Data(
    info=info,
    fingerprint=batches.fingerprint(info['digest'], length),
    tokenizer=tokenizer,
    held_out_bytes=info['held_out_bytes'],
    batch_size=batch,
    seq_len=length,
    train=train,
    held_out=held_out,
    order=batches.grain_order((len(train) - 1) // length, config.seed),
  )


def _pack(folder: Path, corpus: Corpus, declared: Any, config: Config) -> None:
  """Writes train.npy, held_out.npy, tokenizer.json and info.json."""
  logging.info('preparing %s in %s', config.data.source, folder.parent)
  is_held_out, counts = _split(corpus, config)
  tokenizer = tokenizers.TOKENIZERS[declared.variant].train(
    declared, (text for group, text in _documents(corpus) if not is_held_out(group))
  )
  (folder / 'tokenizer.json').write_text(tokenizer.to_json(), encoding='utf-8')
  dtype = batches.token_type(declared.vocab_size)
  with (
    _Stream(folder / 'train.npy', dtype) as train,
    _Stream(folder / 'held_out.npy', dtype) as held_out,
  ):
    documents = _documents(corpus)
    while some := list(itertools.islice(documents, 256)):
      for (group, text), ids in zip(some, tokenizer.encode([t for _, t in some]), strict=True):
        (held_out if is_held_out(group) else train).write(ids, text)
  digest = _digest(json.dumps([train.digest, held_out.digest, tokenizer.to_json()]))
  info = dict(
    **corpus.info,
    **counts,
    tokenizer=config.data.tokenizer,
    vocab_size=tokenizer.vocab_size,
    train_tokens=train.tokens,
    train_bytes=train.bytes,
    held_out_tokens=held_out.tokens,
    held_out_bytes=held_out.bytes,
    digest=digest,
  )
  (folder / 'info.json').write_text(json.dumps(info, indent=2))


def _documents(corpus: Corpus) -> Iterator[tuple[str, str]]:
  return ((group, text) for group, text in corpus.documents() if text)


def _split(corpus: Corpus, config: Config) -> tuple[Callable[[str], bool], dict[str, int]]:
  """Which groups are held out: those whose hash, as a number in [0, 1), lies below the share.

  So a group's side never depends on the others, save that neither side is left empty.
  """
  documents, groups = 0, set()
  for group, _ in _documents(corpus):
    documents += 1
    groups.add(_place(group))
  if len(groups) < 2:
    raise UserError(
      f'--data.source={config.data.source}: {len(groups)} document(s) with text; '
      'at least 2 are needed, one of them to hold out'
    )
  bound = min(max(int(config.data.held_out * 2**64), min(groups) + 1), max(groups))
  held_out_groups = sum(place < bound for place in groups)
  counts = dict(documents=documents, groups=len(groups), held_out_groups=held_out_groups)
  return lambda group: _place(group) < bound, counts


def _place(group: str) -> int:
  return int.from_bytes(hashlib.sha256(f'{_SALT}{group}'.encode()).digest()[:8], 'big')


class _Stream:
  """A one-dimensional .npy file that grows document by document: 0 doc 0 doc … 0."""

  def __init__(self, path: Path, dtype: type):
    self._file, self._dtype = open(path, 'wb'), np.dtype(dtype)  # noqa: SIM115
    self._hash = hashlib.sha256()
    self.tokens = self.bytes = 0

  def __enter__(self) -> Self:
    self._header()
    self._append(np.zeros(1, self._dtype))
    return self

  def write(self, ids: np.ndarray, text: str) -> None:
    """Appends a document and its end."""
    self._append(np.append(ids, 0).astype(self._dtype))
    self.bytes += len(text.encode())

  def __exit__(self, *exc: object) -> None:
    self._file.seek(0)
    self._header()  # as long as before: NumPy leaves room for the first axis to grow
    self._file.close()
    self.digest = self._hash.hexdigest()

  def _append(self, tokens: np.ndarray) -> None:
    self._hash.update(tokens.tobytes())
    self._file.write(tokens.tobytes())
    self.tokens += len(tokens)

  def _header(self) -> None:
    descr = np.lib.format.dtype_to_descr(self._dtype)
    header = dict(descr=descr, fortran_order=False, shape=(self.tokens,))
    np.lib.format.write_array_header_1_0(self._file, header)


def _open(path: Path) -> np.ndarray:
  return np.load(path, mmap_mode='r').view(np.ndarray)


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]
