"""What losses are told in: nats per token, or bits per byte where tokenizers differ.

And what texts that a model decoded are told in, beside its loss.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
  """A number of done.json and metrics.jsonl by which cells are judged.

  key: its name there. unit: in prose, brief: in a heading. line: what is drawn over training.
  far: how far from its siblings a cell must lie, at least, to be named.
  """

  key: str
  unit: str
  brief: str
  line: str
  far: float


NATS = Measure('eval/loss', 'nats per token', 'nats/token', 'train/loss', 0.03)
# A token is two to four bytes of text, so that .03 nats per token are about .015 bits per byte.
BITS = Measure('eval/bits_per_byte', 'bits per byte', 'bits/byte', 'eval/bits_per_byte', 0.015)


def _of(kind: str) -> Measure:
  return dataclasses.replace(NATS, unit=f'nats per {kind} token', brief=f'nats/{kind} token')


MASKED, TARGET = _of('masked'), _of('target')
IN_NATS = {'decoder': NATS, 'encoder': MASKED, 'encoder_decoder': TARGET}  # by architecture

SCORES = {  # of decoded texts against their references, each from 0 to 100, by name in done.json
  'eval/exact_match': 'exact match, %',
  'eval/bleu': 'BLEU',
  'eval/chrf': 'chrF',
}
