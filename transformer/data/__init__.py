"""Text to batches: `load(config)` prepares what is missing once, then opens it in a blink.

sources → documents → split by group → tokens, packed (cache) → rows → shuffled batches.
"""

from __future__ import annotations

from transformer import spec
from transformer.config import Config
from transformer.data.batches import Data

__all__ = ['Data', 'load']


def load(config: Config) -> Data:
  """Returns the data of a resolved config, prepared under a lock if no process did so before.

  Raises UserError, naming flag or file, where there is no text, not enough of it, or no room.
  """
  from transformer.data.sources import SOURCES

  source = spec.parse('data.source', config.data.source)
  return SOURCES[source.variant](source, config)
