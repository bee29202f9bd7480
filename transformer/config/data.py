"""Sources of data and tokenizers, declared. Bodies: data/sources.py and data/tokenizers.py.

What the class of a source tells: `text`, that it gives text, which data.tokenizer cuts into tokens;
`fields`, that it reads --data.text_field; `pairs`, that it can give pairs of a source and a target,
for an encoder-decoder; `documents`, that it can give something else. All but `pairs` if not told.
"""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any, ClassVar

from transformer import spec
from transformer.config import tokenizer_file
from transformer.config.field import setting
from transformer.config.settings import Config
from transformer.errors import UserError
from transformer.spec import declare


def _text(help: str) -> str:
  """The argument of a variant that may be written 'name:text'."""
  return field(metadata=dict(help=help, kind='traced', colon=True))


def wants_pairs(config: Config) -> bool:
  """Whether its model learns from pairs of a source and a target."""
  return config.model.architecture == 'encoder_decoder'


def check_source(config: Config) -> None:
  """Raises UserError unless the source gives what the architecture learns from."""
  source = spec.parse('data.source', config.data.source)
  flag, kind = f'--data.source={config.data.source}', config.model.architecture
  if wants_pairs(config) and not getattr(source, 'pairs', False):
    raise UserError(
      f'{flag}: gives no pairs of a source and a target, which --model.architecture={kind} learns '
      'from; take stdlib, pairs:FILE.tsv or tfds:NAME of a set of translations'
    )
  if not wants_pairs(config) and not getattr(source, 'documents', True):
    raise UserError(
      f'{flag}: gives pairs of a source and a target, which --model.architecture={kind} does not '
      'learn from; take encoder_decoder, or a source of text'
    )


@declare('data.source', 'stdlib')
class Stdlib:
  """The interpreter's own standard library, or pairs of a function of it and what that does."""

  text: ClassVar[bool] = True
  fields: ClassVar[bool] = False
  pairs: ClassVar[bool] = True


@declare('data.source', 'text')
class Text:
  """UTF-8 text files, a document each."""

  glob: str = _text('files, as in text:corpus/**/*.txt')
  text: ClassVar[bool] = True
  fields: ClassVar[bool] = False


@declare('data.source', 'jsonl')
class Jsonl:
  """JSON Lines, an object and a document a line; .gz is unpacked. Fields: --data.text_field."""

  glob: str = _text('files, as in jsonl:corpus/*.jsonl')
  text: ClassVar[bool] = True


@declare('data.source', 'parquet')
class Parquet:
  """Parquet files, a row a document. Columns: --data.text_field."""

  glob: str = _text('files, as in parquet:corpus/*.parquet')
  text: ClassVar[bool] = True


@declare('data.source', 'pairs')
class Pairs:
  """Pairs of texts, a line each: source, tab, target; .gz is unpacked.

  Within a text \\t is a tab, \\n a new line, \\r a carriage return and \\\\ a backslash.
  """

  glob: str = _text('files, as in pairs:corpus/de-en.tsv')
  text: ClassVar[bool] = True
  fields: ClassVar[bool] = False
  pairs: ClassVar[bool] = True
  documents: ClassVar[bool] = False


@declare('data.source', 'tfds')
class Tfds:
  """A TensorFlow Datasets set of texts or translations, prepared as array_record."""

  name: str = _text(
    'data set, as in tfds:lm1b, tfds:wikipedia/20230601.en, tfds:wmt14_translate/de-en'
  )
  reverse: bool = setting(
    False, 'of a translation: from the second language of its name to the first', kind='traced'
  )
  text: ClassVar[bool] = True
  fields: ClassVar[bool] = False
  pairs: ClassVar[bool] = True


@declare('data.source', 'mix')
class Mix:
  """Several sources of text, each with its share of the training rows."""

  parts: str = _text('sources and weights, as in mix:stdlib=0.7,jsonl:corpus/*.jsonl=0.3')

  @property
  def weighted(self) -> list[tuple[Any, float]]:
    """Each part's declared source, and its share of the rows; the shares add up to 1.

    Raises UserError for a part that has no weight above 0, or cannot be mixed.
    """
    where, found = f'--data.source=mix:{self.parts}', []
    for part in spec.split(self.parts):
      name, _, number = part.rpartition('=')
      try:
        weight = float(number)
      except ValueError:
        raise UserError(
          f'{where}: {part!r} should be a source and its weight, as in stdlib=0.7'
        ) from None
      source = spec.parse('data.source', name.strip())
      if not 0 < weight < math.inf:
        raise UserError(f'{where}: {name} has weight {weight:g}; it should be above 0')
      traits = [getattr(source, trait, True) for trait in ('text', 'documents')]
      if isinstance(source, Mix) or not all(traits):
        raise UserError(f'{where}: {name} cannot be part of a mixture; sources of text can')
      if source in [other for other, _ in found]:
        raise UserError(f'{where}: {name} is given twice')
      found.append((source, weight))
    if not found:
      raise UserError(f'{where}: names no source; write mix:stdlib=0.7,jsonl:corpus/*.jsonl=0.3')
    total = sum(weight for _, weight in found)
    return [(source, weight / total) for source, weight in found]

  @property
  def text(self) -> bool:
    return bool(self.weighted)


@declare('data.source', 'tokens')
class Tokens:
  """Files of ids that another program made: bare (nanoGPT) or with a header of 1 KiB (llm.c).

  The model's documents begin at token 0, so ids `eos` and 0 change places on their way in.
  """

  glob: str = _text('files, as in tokens:data/*.bin; those named *val* are held out')
  eos: int = setting(
    50256, 'id between documents; -1: there is none, and ids go up by one', kind='traced', low=-1
  )
  bytes: int = setting(
    0,
    'of an id, 2 or 4, where no header tells; 0: the least for --model.vocab_size',
    kind='traced',
    low=0,
  )
  text: ClassVar[bool] = False
  fields: ClassVar[bool] = False


@declare('data.source', 'synthetic')
class Synthetic:
  """Random tokens of a fixed first-order Markov chain: no files, no tokenizer.

  Pairs are a piece of it and the same piece from its end on.
  """

  rows: int = setting(4096, 'training sequences', kind='traced', low=1)
  text: ClassVar[bool] = False
  fields: ClassVar[bool] = False
  pairs: ClassVar[bool] = True


@declare('data.tokenizer', 'byte')
class Byte:
  """UTF-8 bytes and one end-of-document token."""

  vocab_size: ClassVar[int] = 257


@declare('data.tokenizer', 'bpe')
class Bpe:
  """Byte-level byte-pair encoding trained on the training documents (Sennrich et al. 2016)."""

  vocab_size: int = setting(4096, 'entries, bytes and end-of-document included', low=257)


@declare('data.tokenizer', 'wordpiece')
class WordPiece:
  """Byte-level WordPiece: words cut by longest match first (Schuster & Nakajima 2012; Devlin 2019).

  Pieces within a word are other entries than those that begin one. Trained by merging frequent
  pairs, as Hugging Face's trainer does.
  """

  vocab_size: int = setting(4096, 'entries, both kinds of bytes and end included', low=513)


@declare('data.tokenizer', 'json')
class Json:
  """A tokenizer.json that Hugging Face's library or a run of this one wrote."""

  path: str = _text('file, as in json:gpt2/tokenizer.json')

  @property
  def vocab_size(self) -> int:
    """Ids in use. Raises UserError if there is no such tokenizer."""
    return tokenizer_file.read(self.path, f'--data.tokenizer=json:{self.path}').vocab_size
