"""Documents to packed streams of tokens on disk, made once and memory-mapped ever after.

Pairs are streams, too, of a source and its target by turns; beside them lies where each text ends.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer import spec
from transformer.config import Config
from transformer.data import batches, cache, pairs, stream, tokenizers
from transformer.data.corpus import Corpus, Watch, origin, split
from transformer.data.stream import PairStream, Stream
from transformer.errors import UserError

_MOST_TEXTS, _MOST_CHARACTERS = 256, 1_000_000  # encoded at once
_FORMAT = 1  # of the cache; raised when what is written for the same input changes


@dataclasses.dataclass(frozen=True)
class Packed:
  """What `prepare` made."""

  folder: Path
  info: dict[str, Any]
  tokenizer: Any
  train: tuple[np.ndarray, ...]  # a stream a part
  held_out: np.ndarray
  ends: tuple[np.ndarray, ...]  # of pairs: places of the tokens 0 of both streams
  sizes: tuple[np.ndarray, ...]  # of pairs: bytes of the texts of both


def data(corpora: Sequence[Corpus], config: Config, watch: Watch | None = None) -> batches.Data:
  """Batches of text: of one corpus, or of the parts of a mixture; packed first where need be.

  Raises UserError if the text does not make one batch, or the cache cannot be used.
  """
  made = prepare(corpora, config, watch)
  if corpora[0].pairs:
    return pairs.data(made, config)
  size, length, info = config.data.batch_size, config.data.seq_len, made.info
  rows = batches.Rows(made.train, length)
  batches.check_size(rows, info['train_tokens'], config.data.source, size, length)
  if len(corpora) == 1:
    order = batches.grain_order(len(rows), config.seed)
  else:
    order = batches.mixed_order(rows.counts, [c.weight for c in corpora], config.seed)
    info |= {'parts': _shares(info['parts'], corpora, rows.counts, config)}
  return batches.Data(
    info=info,
    fingerprint=batches.fingerprint(info['digest'], length),
    tokenizer=made.tokenizer,
    held_out_bytes=info['held_out_bytes'],
    batch_size=size,
    seq_len=length,
    train=made.train,
    held_out=(made.held_out,),
    order=order,
  )


def prepare(corpora: Sequence[Corpus], config: Config, watch: Watch | None = None) -> Packed:
  """Tokenizer and streams; made first if the cache has none of this state.

  Raises UserError if there is too little text to split, or the cache cannot be used.
  """
  declared = spec.parse('data.tokenizer', config.data.tokenizer)
  state, name = corpora[0].state, corpora[0].info['source']
  if len(corpora) > 1:
    state, name = ['mix', [corpus.state for corpus in corpora]], 'mix'
  key = json.dumps([_FORMAT, state, _tokenizer_state(declared, config), config.data.held_out])
  folder = cache.once(
    cache.root(config.data.cache) / 'tokens' / f'{name}-{declared.variant}-{_digest(key)}',
    lambda partial: _pack(partial, corpora, declared, config, watch or (lambda *_: None)),
  )
  sides = ('train', 'held_out') if corpora[0].pairs else ()
  try:
    return Packed(
      folder,
      json.loads((folder / 'info.json').read_text()),
      tokenizers.load(folder / 'tokenizer.json'),
      tuple(stream.mapped(folder, name) for name in _train_names(corpora)),
      stream.mapped(folder, 'held_out'),
      tuple(stream.mapped(folder, f'{side}_ends') for side in sides),
      tuple(stream.mapped(folder, f'{side}_bytes') for side in sides),
    )
  except (OSError, EOFError, ValueError, UserError) as e:
    raise UserError(f'--data.cache: {folder} is damaged ({e}); delete that folder') from e


def _tokenizer_state(declared: Any, config: Config) -> str:
  """The tokenizer as it was asked for; one from a file by the file's content."""
  if declared.variant == 'json':
    return hashlib.sha256(Path(declared.path).expanduser().read_bytes()).hexdigest()
  return config.data.tokenizer + origin(tokenizers.TOKENIZERS[declared.variant])


def _train_names(corpora: Sequence[Corpus]) -> list[str]:
  return ['train'] if len(corpora) == 1 else [f'train-{k}' for k in range(len(corpora))]


def _shares(
  parts: list[dict], corpora: Sequence[Corpus], rows: Sequence[int], config: Config
) -> list[dict]:
  """Each part's share of the rows, and how often training will go through it.

  Raises UserError for a part without a row.
  """
  seen, found = config.train.steps * config.data.batch_size, []
  for part, corpus, count in zip(parts, corpora, rows, strict=True):
    if not count:
      raise UserError(
        f'--data.source={config.data.source}: {corpus.name} has {part["train_tokens"]:,} training '
        f'tokens; one row of --data.seq_len={config.data.seq_len} needs {config.data.seq_len + 1}'
      )
    found.append(part | {'weight': corpus.weight, 'epochs': seen * corpus.weight / count})
  return found


def _pack(
  folder: Path, corpora: Sequence[Corpus], declared: Any, config: Config, watch: Watch
) -> None:
  """Writes the streams, tokenizer.json and info.json."""
  logging.info('preparing %s in %s', config.data.source, folder.parent)
  watch('reading', 0, 0)
  splits = [split(c, config.data.held_out, c.name or config.data.source) for c in corpora]
  documents = (
    texts
    for corpus, side in zip(corpora, splits, strict=True)
    for group, *texts in corpus.texts()
    if not side.holds_out(group)
  )
  learn = tokenizers.TOKENIZERS[declared.variant]
  total = sum(side.counts['documents'] - side.counts['held_out_documents'] for side in splits)
  watched = _watched(documents, watch, 'learning the tokenizer', total)
  tokenizer = learn(declared, itertools.chain.from_iterable(watched))
  (folder / 'tokenizer.json').write_text(tokenizer.to_json(), encoding='utf-8')
  dtype, counted, digests = batches.token_type(declared.vocab_size), [], []
  kind = PairStream if corpora[0].pairs else Stream
  with kind(folder, 'held_out', dtype) as held_out:
    for corpus, side, name in zip(corpora, splits, _train_names(corpora), strict=True):
      before = Counter(held_out.counts)
      with kind(folder, name, dtype) as train:
        doing = f'cutting {corpus.name or "text"} into tokens'
        documents = _watched(corpus.texts(), watch, doing, side.counts['documents'])
        lossy = _write(documents, tokenizer, side.holds_out, train, held_out)
      counts = {f'train_{what}': n for what, n in train.counts.items()}
      counts |= {f'held_out_{what}': n - before[what] for what, n in held_out.counts.items()}
      counted.append(side.counts | counts | {'held_out_lossy_documents': lossy})
      digests.append(train.digest)
  info = {
    **{what: sum(counts[what] for counts in counted) for what in counted[0]},
    'held_out_tokens': held_out.counts['tokens'],  # the first one, too
    'tokenizer': config.data.tokenizer,
    'vocab_size': tokenizer.vocab_size,
    'digest': _digest(json.dumps([*digests, held_out.digest, tokenizer.to_json()])),
  }
  if len(corpora) == 1:
    info = corpora[0].info | info
  else:
    parts = [{'name': c.name, **c.info, **n} for c, n in zip(corpora, counted, strict=True)]
    info = {'source': 'mix', **info, 'parts': parts}
  (folder / 'info.json').write_text(json.dumps(info, indent=2))


def _write(
  documents: Iterable[tuple[str, ...]],
  tokenizer: Any,
  holds_out: Callable[[str], bool],
  train: Stream,
  held_out: Stream,
) -> int:
  """Appends each text to its side. Returns how many held-out ones do not come back whole."""
  texts, lossy = ((group, text) for group, *texts in documents for text in texts), 0
  for some in _handfuls(texts):
    for (group, text), ids in zip(some, tokenizer.encode([t for _, t in some]), strict=True):
      side = held_out if holds_out(group) else train
      side.write(ids, text, int(np.count_nonzero(ids == tokenizer.unknown)))
      lossy += side is held_out and tokenizer.decode(ids) != text  # they tell enough
  return lossy


def _handfuls(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
  """(group, text)s to be encoded at once: enough for all cores, and little memory.

  The library keeps a hundred bytes and more of a token until it has encoded them all.
  """
  some, size = [], 0
  for one in texts:
    some.append(one)
    size += len(one[1])
    if len(some) == _MOST_TEXTS or size >= _MOST_CHARACTERS:
      yield some
      some, size = [], 0
  if some:
    yield some


def _watched(items: Iterable, watch: Watch, doing: str, total: int) -> Iterator:
  """The items; `watch` is told now and then."""
  for done, item in enumerate(items):
    if done % 64 == 0:
      watch(doing, done, total)
    yield item
  watch(doing, total, total)


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]
