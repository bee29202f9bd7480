"""Decoding: what a trained Transformer writes, token after token.

Keys and values of tokens that were read are kept, so that each new token costs one pass over
itself alone; the loop over new tokens is one compiled program.
"""

from transformer.decode.beam import Hypothesis, beam_search
from transformer.decode.kept import checked as check
from transformer.decode.kept import most_tokens
from transformer.decode.sampling import Sampling, generate, next_tokens, stream
from transformer.decode.saved import open_cell, open_tokenizer

__all__ = [
  'Hypothesis',
  'Sampling',
  'beam_search',
  'check',
  'generate',
  'most_tokens',
  'next_tokens',
  'open_cell',
  'open_tokenizer',
  'stream',
]
