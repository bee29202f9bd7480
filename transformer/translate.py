"""What an encoder-decoder makes of held-out sources, held against the texts that belong to them.

BLEU (Papineni et al. 2002) and chrF (Popović 2015) of the whole set, as sacrebleu has them by
default (Post 2018), and the share of texts that are equal to their reference; all from 0 to 100.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transformer import count, decode
from transformer.config import Config
from transformer.data import Data
from transformer.files import replacing

if TYPE_CHECKING:
  from transformer.data.pairs import Pairs

FILE = 'samples.json'
_KEPT = 32  # samples


def wanted(config: Config, data: Data) -> bool:
  """Whether there is text to decode, and it is to be."""
  both = config.model.architecture == 'encoder_decoder' and not count.looks_ahead(config)
  return both and bool(data.tokenizer and config.train.decoded)


def score(
  config: Config, params: dict, data: Pairs, folder: Path, beat: Callable[[], None]
) -> dict[str, float]:
  """eval/exact_match, eval/bleu and eval/chrf of held-out sources decoded greedily.

  Those are train.decoded of them, evenly spread over the held-out set, the same for every model.
  Writes samples.json into `folder`: how many they are, sacrebleu's signatures, and some of them
  with reference and hypothesis. beat: is called before each batch.
  """
  chosen = spread(len(data.held_out_pairs), config.train.decoded)
  pairs = data.held_out_texts()
  sources, references = zip(*(pairs[k] for k in chosen), strict=True)
  hypotheses = translate(config, params, data, chosen, beat)
  scores, signatures = measured(hypotheses, references)
  texts = list(zip(sources, references, hypotheses, strict=True))
  told = {'decoded': len(chosen), 'held_out': len(pairs), **signatures}
  names = ('source', 'reference', 'hypothesis')
  told['samples'] = [dict(zip(names, texts[k], strict=True)) for k in spread(len(texts), _KEPT)]
  with replacing(folder / FILE) as f:
    f.write(json.dumps(told, indent=1, ensure_ascii=False) + '\n')
  return {f'eval/{name}': value for name, value in scores.items()}


def translate(
  config: Config, params: dict, data: Pairs, chosen: np.ndarray, beat: Callable[[], None]
) -> list[str]:
  """The likeliest text, token by token, for each of these held-out pairs."""
  rows = data.held_out_pairs[chosen][:, : config.data.source_len]
  sources = [row[row >= 0] for row in rows]
  by_length = np.argsort([-len(ids) for ids in sources], kind='stable')
  parts = -(-len(chosen) // config.data.batch_size)
  # Without its seed: cells that differ in nothing else share the compiled loop. For the same reason
  # all batches have as many rows, and one of the longest sources.
  same, found = config.replace(seed=0), {}
  for k in range(parts):
    beat()
    batch = np.resize(by_length[k::parts], config.data.batch_size)
    asked = [sources[i] for i in batch]
    new = decode.generate(same, params, None, config.data.seq_len, sources=asked)
    found |= zip(batch, map(data.tokenizer.decode, new), strict=True)
  return [found[i] for i in range(len(chosen))]


def measured(
  hypotheses: list[str], references: list[str]
) -> tuple[dict[str, float], dict[str, str]]:
  """(exact_match, bleu and chrf of texts against a reference each, sacrebleu's signatures)."""
  from sacrebleu.metrics import BLEU, CHRF

  equal = np.mean([h == r for h, r in zip(hypotheses, references, strict=True)])
  scores, signatures = {'exact_match': 100 * float(equal)}, {}
  for name, metric in (('bleu', BLEU()), ('chrf', CHRF())):
    scores[name] = metric.corpus_score(hypotheses, [references]).score
    signatures[name] = str(metric.get_signature())
  return scores, signatures


def spread(total: int, most: int) -> np.ndarray:
  """Up to `most` of the numbers below `total`, evenly spread."""
  return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(int))
