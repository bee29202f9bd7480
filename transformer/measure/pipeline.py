"""Text to batches: the tokenizer, cutting, packing, batches; their rates and memory."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from transformer import data
from transformer.config import Config, resolve
from transformer.measure import fresh
from transformer.measure.measures import Asked, Measure
from transformer.measure.timing import repeated

_FILES = 4
_WORDS = 50_000
_BATCHES = 32


def measure(asked: Asked) -> Measure:
  """A turn prepares the source in an empty cache, reads batches, and opens it in a fresh process.

  In place of synthetic tokens, which are no text, it is corpus_mb of generated text.
  tokens_per_s: cut into tokens and packed, the tokenizer being there. batch_tokens_per_s: batches
  read from what was packed. prepare_s: all of the preparation. first_batch_s: from the start of a
  process that finds it prepared. memory_mb: beyond what the process had before.
  """

  def turn() -> dict:
    with tempfile.TemporaryDirectory() as folder:
      config = _with_text(asked, Path(folder))
      config = config.replace(**{'data.cache': f'{folder}/cache'})
      return _turn(config, asked.seconds)

  return Measure(turn)


def _turn(config: Config, seconds: float) -> dict:
  phases, last = Counter(), [time.perf_counter(), 'opening']

  def watch(doing: str, done: int, total: int) -> None:
    now = time.perf_counter()
    phases[last[1]] += now - last[0]
    last[:] = now, doing.partition(' ')[0]

  with _memory() as memory:
    start = time.perf_counter()
    source = data.load(config, watch)
    watch('done', 0, 0)
    prepare_s = time.perf_counter() - start
    some = iter(range(10**9))
    times = repeated(lambda: [source.train_batch(next(some)) for _ in range(_BATCHES)], seconds)
  tokens = config.data.batch_size * config.data.seq_len
  made = source.info['train_tokens'] + source.info['held_out_tokens']
  return {
    'tokens_per_s': made / phases['cutting'],
    'batch_tokens_per_s': tokens * _BATCHES / float(np.median(times)),
    'prepare_s': prepare_s,
    'learn_s': phases['learning'],
    'cut_s': phases['cutting'],
    'tokens': made,
    'first_batch_s': fresh.ask('batch', config, config.data.cache)['data_s'],
    **memory,
  }


def _with_text(asked: Asked, folder: Path) -> Config:
  if not asked.config.data.source.startswith('synthetic'):
    return asked.config
  write_text(folder, asked.corpus_mb)
  changes = {'data.source': f'text:{folder}/*.txt', 'model.vocab_size': 0}
  return resolve(asked.config.replace(**changes))


def write_text(folder: Path, megabytes: float) -> None:
  """A few files of words that come up as often as in a language, by Zipf's law; the same always."""
  rng = np.random.default_rng(0)
  letters = np.array(list('etaoinshrdlucmfwypvbgkjqxz'))
  lengths = rng.integers(2, 11, _WORDS)
  words = np.array([''.join(rng.choice(letters[:20], n)) for n in lengths])
  chances = 1 / np.arange(1, _WORDS + 1)
  chances /= chances.sum()
  for number in range(_FILES):
    size = 0
    with open(folder / f'{number}.txt', 'w') as f:
      while size < megabytes * 1e6 / _FILES:
        lines = rng.choice(words, (1000, 12), p=chances)
        size += f.write('\n'.join(map(' '.join, lines)) + '\n')


@contextmanager
def _memory() -> Iterator[dict]:
  """Fills in memory_mb: the most that the process takes within, beyond what it had before.

  Pages of mapped files do not count: the system takes them back at will.
  """
  found, over = {'memory_mb': None}, threading.Event()
  if not sys.platform.startswith('linux'):
    yield found
    return

  def watch() -> None:
    before = most = _anonymous_kb()
    while not over.wait(0.02):
      most = max(most, _anonymous_kb())
    found['memory_mb'] = (most - before) / 1024

  thread = threading.Thread(target=watch)
  thread.start()
  try:
    yield found
  finally:
    over.set()
    thread.join()


def _anonymous_kb() -> int:
  status = Path('/proc/self/status').read_text()
  return int(status.partition('RssAnon:')[2].split()[0])
