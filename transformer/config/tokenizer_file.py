"""What a tokenizer.json says of its ids, by the json module alone.

Id 0 ends documents here. A file whose end token has another id gets its id and 0 exchanged; one
without an end token gets all ids moved up by one.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from transformer.errors import UserError

ENDS = ('<eos>', '<|endoftext|>', '<|end_of_text|>', '</s>', '[SEP]')

MASKS = ('[MASK]', '<mask>')


@dataclasses.dataclass(frozen=True)
class Facts:
  """Ids of a tokenizer.json.

  entries: its ids are below this. end, unknown, mask: its ids of these tokens, None where it has
  none. end_name: how the end token is written.
  """

  entries: int
  end: int | None
  unknown: int | None
  mask: int | None = None
  end_name: str = ''

  @property
  def vocab_size(self) -> int:
    """Ids as the model sees them."""
    return self.entries + (self.end is None)


def rearranged(entries: int, end: int | None) -> list[int]:
  """Our id of each of a file's ids below `entries`, of which `end` ends a document."""
  if end is None:
    return list(range(1, entries + 1))
  ours = list(range(entries))
  ours[0], ours[end] = ours[end], ours[0]
  return ours


def read(path: str | Path, where: str) -> Facts:
  """The facts of a file. Raises UserError, beginning with `where`, if it is no tokenizer."""
  try:
    text = Path(path).expanduser().read_text(encoding='utf-8')
  except (OSError, ValueError) as e:
    reason = e.strerror if isinstance(e, OSError) else 'not UTF-8'
    raise UserError(f'{where}: cannot be read ({reason}); name a tokenizer.json') from None
  return facts(text, where)


def facts(text: str, where: str) -> Facts:
  """The facts of a file's content. Raises UserError, beginning with `where`, if it is another."""
  try:
    tree = json.loads(text)
    if tree.get('isoffn') == 'byte':
      return Facts(257, 0, None)
    model, added = tree['model'], tree.get('added_tokens') or []
    vocab = model['vocab']
    if isinstance(vocab, list):  # Unigram: pairs of a token and its score
      vocab = {token: i for i, (token, _) in enumerate(vocab)}
    ids = vocab | {token['content']: token['id'] for token in added}
    special = {token['content'] for token in added if token['special']}
    end_name = next((name for name in ENDS if name in special), '')
    mask = next((ids[name] for name in MASKS if name in special), None)
    unknown = model.get('unk_id')
    if unknown is None:
      unknown = ids.get(model.get('unk_token'))
    return Facts(max(ids.values()) + 1, ids.get(end_name), unknown, mask, end_name)
  except (ValueError, TypeError, KeyError, AttributeError):
    raise UserError(f'{where}: is not a tokenizer.json of Hugging Face or of a run') from None
