"""Text to learn from, as documents in groups; and what a source of one's own needs."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformer.errors import UserError

# With this salt a tenth by hash is 9.2 % of the standard library's text on Python 3.11 and 9.8 % on
# 3.12, in 22 packages (asyncio or idlelib alone, as other salts have it, would be half of it).
_SALT = '1:'
Documents = Iterator[tuple[str, ...]]  # (group, text); of pairs (group, source, target)
# Is told what is being done, how many documents are through, and of how many (0: not known).
Watch = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents of text, or pairs of texts, each of which counts as a document."""

  state: Any  # JSON, cheap to find, different whenever the documents may differ
  info: dict[str, Any]  # for Data.info; its 'source' is a short name
  documents: Callable[[], Documents]  # a group is held out whole
  pairs: bool = False
  name: str = ''  # of a part of a mixture: its source
  weight: float = 1.0  # of a part of a mixture: its share of the rows

  def texts(self) -> Documents:
    """The documents that hold any text; of pairs, on both sides."""
    return (document for document in self.documents() if all(document[1:]))


@dataclasses.dataclass(frozen=True)
class Split:
  """Which groups of a corpus are held out, and what was counted to find out."""

  bound: int
  counts: dict[str, int]

  def holds_out(self, group: str) -> bool:
    return _place(group) < self.bound


def split(corpus: Corpus, share: float, source: str) -> Split:
  """Holds out the groups whose hash, as a number in [0, 1), lies below the share.

  So a group's side never depends on the others, save that neither side is left empty.
  Raises UserError, naming `source`, if there are fewer than two groups.
  """
  groups: Counter[int] = Counter(_place(group) for group, *_ in corpus.texts())
  documents = groups.total()
  if len(groups) < 2:
    kind = ('pair(s)', 'pairs') if corpus.pairs else ('document(s) with text', 'documents')
    what = f'{documents} {kind[0]}' if documents < 2 else f'1 group of {kind[1]}'
    raise UserError(
      f'--data.source={source}: {what}; at least 2 are needed, one of them to hold out'
    )
  bound = min(max(int(share * 2**64), min(groups) + 1), max(groups))
  held_out = [count for place, count in groups.items() if place < bound]
  counts = dict(documents=documents, held_out_documents=sum(held_out))
  return Split(bound, counts | dict(groups=len(groups), held_out_groups=len(held_out)))


def from_generator(function: Callable, declared: Any, config: Any) -> Corpus:
  """The corpus of a generator function `(declared, config) -> Documents` in a user's own file.

  Its `state` is its content, read at every start: what it depends on, nobody else knows. A source
  too large for that returns a Corpus with a `state` of its own.
  """
  total = hashlib.sha256()
  try:
    for group, text in function(declared, config):
      for part in (group, text):
        total.update(f'{len(part)} '.encode() + part.encode())
  except UserError:
    raise
  except Exception as e:  # whatever a user's function may do, or yield
    reason = f'{type(e).__name__}: {str(e).partition(chr(10))[0]}'
    raise UserError(
      f'--data.source={declared.variant}: ends in {reason}; it should yield pairs of texts, a '
      'group and a document'
    ) from e
  return Corpus(
    state=[declared.variant, total.hexdigest()],
    info=dict(source=declared.variant),
    documents=lambda: function(declared, config),
  )


def origin(function: Callable) -> str:
  """A digest of the file a function stands in; '' for one of ours, which the code digest covers."""
  if function.__module__.startswith('transformer.'):
    return ''
  path = inspect.getsourcefile(inspect.unwrap(function))
  return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ''


def matches(pattern: str, source: str) -> list[str]:
  """The files that a glob finds, sorted. Raises UserError, naming `source`, if there is none."""
  pattern = os.path.expanduser(pattern)
  found = glob.glob(pattern, recursive=True)
  paths = sorted(p for p in found if os.path.isfile(p))
  if not paths:
    where = '' if os.path.isabs(pattern) else f' in {os.getcwd()}'
    raise UserError(f'--data.source={source}: no file matches{where}')
  return paths


def file_states(paths: Sequence[str]) -> list[tuple[str, int, int]]:
  """For `Corpus.state`: where files lie, their sizes and times."""
  stats = [os.stat(p) for p in paths]
  return [(os.path.abspath(p), s.st_size, s.st_mtime_ns) for p, s in zip(paths, stats, strict=True)]


def _place(group: str) -> int:
  return int.from_bytes(hashlib.sha256(f'{_SALT}{group}'.encode()).digest()[:8], 'big')
