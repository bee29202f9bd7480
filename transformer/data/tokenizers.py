"""Text to ids and back, byte for byte. Id 0 is `<eos>`, which no text can produce."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

EOS = '<eos>'


class Byte:
  """Byte b of the UTF-8 text is id b + 1."""

  vocab_size = 257

  @classmethod
  def train(cls, declared: Any, texts: Iterable[str]) -> Self:
    """Nothing to learn."""
    return cls()

  def encode(self, texts: list[str]) -> list[np.ndarray]:
    """Ids of each text, int32."""
    return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) + 1 for t in texts]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; 0, padding and ids past the vocabulary say nothing."""
    return bytes(i - 1 for i in _plain(ids, self.vocab_size)).decode(errors='replace')

  def to_json(self) -> str:
    """What `load` reads."""
    return json.dumps({'isoffn': 'byte'})


class Bpe:
  """Byte-level byte-pair encoding; `tokenizer.json` is the one Hugging Face's library reads."""

  def __init__(self, trained: Any):
    self._trained = trained
    self._trained.encode_special_tokens = True  # a text's own '<eos>' is five letters, not id 0
    self.vocab_size = trained.get_vocab_size()

  @classmethod
  def train(cls, declared: Any, texts: Iterable[str]) -> Self:
    """Learns at most `declared.vocab_size` entries (fewer if the text has fewer pairs)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
      vocab_size=declared.vocab_size,
      special_tokens=[EOS],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return cls(trained)

  def encode(self, texts: list[str]) -> list[np.ndarray]:
    """Ids of each text, int32."""
    return [np.array(e.ids, np.int32) for e in self._trained.encode_batch_fast(texts)]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; 0, padding and ids past the vocabulary say nothing."""
    return self._trained.decode(list(_plain(ids, self.vocab_size)), skip_special_tokens=False)

  def to_json(self) -> str:
    """What `load` reads."""
    return self._trained.to_str()


TOKENIZERS: dict[str, type] = {'byte': Byte, 'bpe': Bpe}  # data.tokenizer -> body


def load(path: str | Path) -> Byte | Bpe:
  """The tokenizer saved in a `tokenizer.json`."""
  text = Path(path).read_text(encoding='utf-8')
  if json.loads(text).get('isoffn') == 'byte':
    return Byte()
  from tokenizers import Tokenizer

  return Bpe(Tokenizer.from_str(text))


def _plain(ids: Iterable[int], vocab_size: int) -> Iterator[int]:
  return (int(i) for i in ids if 0 < i < vocab_size)
