"""Text to ids and back. Id 0 is the end of a document, which no text can produce.

A body takes its declaration and the training texts, and returns a tokenizer. One from a user's own
file returns a `Subword`, so that `load` can read it back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transformer import spec
from transformer.config import tokenizer_file
from transformer.errors import UserError

EOS = '<eos>'
INSIDE = '‿'  # marks WordPiece's entries within words: unlike '##', no bytes are written so
_BLANKS = {' ': '␣', '\n': '⏎', '\t': '⇥', '\r': '␍'}
_LONGEST_WORD = 64  # bytes; WordPiece takes time by the square of it

TOKENIZERS: dict[str, Callable] = spec.bodies('data.tokenizer')


class Byte:
  """Byte b of the UTF-8 text is id b + 1."""

  vocab_size = 257
  unknown = None

  def encode(self, texts: list[str]) -> list[np.ndarray]:
    """Ids of each text, int32."""
    return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) + 1 for t in texts]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; 0, padding and ids past the vocabulary say nothing."""
    return bytes(i - 1 for i in _plain(ids, self.vocab_size)).decode(errors='replace')

  def pieces(self, text: str) -> list[str]:
    """What each id of `text` stands for; of a character cut into several, which part."""
    return _numbered(text, [(k, k + 1) for k, c in enumerate(text) for _ in c.encode()])

  def to_json(self) -> str:
    """What `load` reads."""
    return json.dumps({'isoffn': 'byte'})

  def to_library(self) -> str:
    """A tokenizer.json of Hugging Face's library with the same ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # Byte-level signs (Radford et al. 2019): a byte that prints is its own, the others follow 255.
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in own]
    sign = {b: chr(b) for b in own} | {b: chr(256 + k) for k, b in enumerate(others)}
    made = Tokenizer(models.BPE({EOS: 0} | {sign[b]: b + 1 for b in range(256)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([EOS])
    return made.to_str()


class Subword:
  """A tokenizer of Hugging Face's library, its ids rearranged so that 0 ends a document."""

  def __init__(self, trained: Any, where: str = 'tokenizer.json'):
    trained.no_truncation()
    trained.no_padding()
    trained.encode_special_tokens = True  # a text's own '<eos>' is five letters, not id 0
    self._trained, self._json = trained, trained.to_str()
    facts = tokenizer_file.facts(self._json, where)
    self.vocab_size = facts.vocab_size
    # From the library's ids to ours.
    self._ours = np.array(tokenizer_file.rearranged(facts.entries, facts.end), np.int32)
    self._theirs = np.zeros(self.vocab_size, np.int64)
    self._theirs[self._ours] = np.arange(facts.entries)
    self.unknown = None if facts.unknown is None else int(self._ours[facts.unknown])

  def encode(self, texts: list[str]) -> list[np.ndarray]:
    """Ids of each text, int32."""
    encoded = self._trained.encode_batch_fast(texts, add_special_tokens=False)
    found = [self._ours[np.array(e.ids, np.int64)] for e in encoded]
    return [ids[ids > 0] for ids in found]  # a vocabulary may hold its end token as text, too

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; 0, padding and ids past the vocabulary say nothing."""
    theirs = [int(self._theirs[i]) for i in _plain(ids, self.vocab_size)]
    return self._trained.decode(theirs, skip_special_tokens=False)

  def pieces(self, text: str) -> list[str]:
    """What each id of `text` stands for; of a character cut into several, which part.

    What a normaliser took in, as the later letters of a Korean syllable, belongs to what it became.
    """
    encoded = self._trained.encode(text, add_special_tokens=False)
    taken = {k for span in encoded.offsets for k in range(*span)}

    def end(k: int) -> int:
      while k < len(text) and k not in taken and not text[k].isspace():
        k += 1
      return k

    spans = zip(encoded.offsets, encoded.ids, strict=True)
    return _numbered(text, [(start, end(stop)) for (start, stop), i in spans if self._ours[i]])

  def to_json(self) -> str:
    """What `load` reads."""
    return self._json


def byte(declared: Any, texts: Iterable[str]) -> Byte:
  """Nothing to learn."""
  return Byte()


def bpe(declared: Any, texts: Iterable[str]) -> Subword:
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
  return Subword(trained)


def wordpiece(declared: Any, texts: Iterable[str]) -> Subword:
  """Learns at most `declared.vocab_size` entries; any text can be written with them."""
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

  trained = Tokenizer(models.WordPiece(unk_token=EOS))  # has to be named, and never comes up
  words = pre_tokenizers.ByteLevel(add_prefix_space=False)
  short = pre_tokenizers.Split(Regex(f'.{{1,{_LONGEST_WORD}}}'), 'isolated')
  trained.pre_tokenizer = pre_tokenizers.Sequence([words, short])
  trained.decoder = decoders.Sequence([decoders.Replace(INSIDE, ''), decoders.ByteLevel()])
  trainer = trainers.WordPieceTrainer(
    vocab_size=declared.vocab_size,
    special_tokens=[EOS],
    show_progress=False,
    continuing_subword_prefix=INSIDE,
  )
  trained.train_from_iterator(texts, trainer)
  # The trainer knows the bytes it saw; every byte at both places leaves nothing unknown.
  learned = trained.get_vocab()
  signs = sorted(pre_tokenizers.ByteLevel.alphabet())
  always = [EOS, *signs, *(INSIDE + sign for sign in signs)]
  entries = list(dict.fromkeys([*always, *sorted(learned, key=learned.get)]))[: declared.vocab_size]
  trained.model = models.WordPiece(
    {entry: i for i, entry in enumerate(entries)},
    unk_token=EOS,
    continuing_subword_prefix=INSIDE,
  )
  return Subword(trained)


def from_file(declared: Any, texts: Iterable[str]) -> Byte | Subword:
  """The tokenizer of a file; nothing to learn. Raises UserError if the library cannot read it."""
  return load(declared.path, f'--data.tokenizer=json:{declared.path}')


TOKENIZERS.update({'byte': byte, 'bpe': bpe, 'wordpiece': wordpiece, 'json': from_file})


def load(path: str | Path, where: str = '') -> Byte | Subword:
  """The tokenizer saved in a `tokenizer.json`. where: how an error begins; the path, if empty.

  Raises UserError if it is none.
  """
  where = where or str(path)
  tokenizer_file.read(path, where)
  text = Path(path).expanduser().read_text(encoding='utf-8')
  if json.loads(text).get('isoffn') == 'byte':
    return Byte()
  from tokenizers import Tokenizer

  try:
    trained = Tokenizer.from_str(text)
  except Exception as e:  # the library raises nothing narrower
    raise UserError(f'{where}: tokenizers cannot read it ({str(e)[:200]})') from None
  return Subword(trained, where)


def visible(text: str) -> str:
  """A text with a sign for each blank, and · for what else cannot be seen."""
  return ''.join(_BLANKS.get(c, c if c.isprintable() else '·') for c in text)


def _plain(ids: Iterable[int], vocab_size: int) -> Iterator[int]:
  return (int(i) for i in ids if 0 < i < vocab_size)


def _numbered(text: str, spans: list[tuple[int, int]]) -> list[str]:
  """What stands at each span. Of a character in several of them it says which part: 'é 1/2'.

  '한글 1/3' is a whole character and the first of three parts of another.
  """
  parts, seen, found = Counter(k for span in spans for k in range(*span)), Counter(), []
  for span in spans:
    seen.update(range(*span))
    shared = [k for k in range(*span) if parts[k] > 1]
    which = f' {seen[shared[-1]]}/{parts[shared[-1]]}' if shared else ''
    found.append(text[slice(*span)] + which)
  return found
