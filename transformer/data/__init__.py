"""Text to batches: `load(config)` prepares what is missing once, then opens it in a blink.

sources → documents → split by group → tokens, packed (cache) → rows → shuffled batches.
For an encoder-decoder a document is a pair, of a source and a target, and `Pairs` are its batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformer import spec
from transformer.config import Config
from transformer.data.batches import Data
from transformer.data.corpus import Corpus, Watch, file_states
from transformer.data.pairs import Pairs
from transformer.errors import UserError

if TYPE_CHECKING:
  from transformer.data.packed import Packed

__all__ = ['Corpus', 'Data', 'Pairs', 'Watch', 'corpora', 'file_states', 'load', 'prepare']


def load(config: Config, watch: Watch | None = None) -> Data:
  """Returns the data of a resolved config, prepared under a lock if no process did so before.

  Raises UserError, naming flag or file, where there is no text, not enough of it, or no room.
  """
  made = _opened(config)
  if isinstance(made, Data):
    return made
  from transformer.data import packed

  return packed.data(made, config, watch)


def prepare(config: Config, watch: Watch | None = None) -> Packed:
  """Tokenizer and streams of a source of text, of any size. Raises UserError as `load` does."""
  from transformer.data import packed

  return packed.prepare(corpora(config), config, watch)


def corpora(config: Config) -> tuple[Corpus, ...]:
  """The text of a resolved config: one corpus, or the parts of a mixture.

  Raises UserError if its source gives no text, or there is none.
  """
  made = _opened(config)
  if isinstance(made, Data):
    raise UserError(f'--data.source={config.data.source}: holds no text; name a source that does')
  return made


def _opened(config: Config) -> Data | tuple[Corpus, ...]:
  from transformer.data import sources

  made = sources.opened(spec.parse('data.source', config.data.source), config)
  return (made,) if isinstance(made, Corpus) else made
