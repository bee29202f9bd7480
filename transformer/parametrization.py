"""How rates and scales follow width: `standard`, where they do not, and muP, where they do.

muP (Yang et al. 2022, Tensor Programs V, Table 8, for Adam-like optimizers) keeps every activation
and its change by a step at the same size whatever the width, so that the best rate of a narrow
model is the best of a wide one. An Adam step moves each entry of a tensor by about the rate, so:

- A hidden matrix sums fan_in entries moved alike: its rate goes with 1 / fan_in. That is 1/d_model
  for query, key, value, up and gate, 1/(heads · head width) for attention's `out`, 1/d_ff for
  `down`. Initial variances are 1 / fan_in under both rules (axes.PARAMS).
- The table enters the stream times √d_model (model.py). Entries of √d_model · table should move by
  the same at any width, so the table's rate goes with 1/√d_model.
- Logits sum d_model products of the stream and the table. muP wants (1 / d_model) · stream ·
  entries of size 1; the table's are of size 1/√d_model, which leaves a factor 1/√d_model for the
  logits. An `unembed` of its own is drawn and read as the table is, and moves as it does.
- A query and a key learn to agree, so their product sums head_dim terms of one sign: scores are
  divided by head_dim and not by its root.
- Learned positions are drawn, scaled and moved as the table is.
- Scores of a router sum d_model products, as a hidden matrix does: its rate goes with 1/d_model.
- Vectors (scales, biases, parameters of activations) sum nothing: their rate stays.

Constants make muP equal to `standard` at d_model = base_d_model = heads · head width, d_ff = 4
base_d_model and head width = base_head_dim. Decoupled weight decay keeps the global rate: rate ·
decay, the share of a weight lost a step, is then the same at any width, as in the authors' own
`mup` package.
"""

from __future__ import annotations

from math import prod
from typing import Any

from transformer import axes, count, spec
from transformer.config import Config

_WIDTHS = set('DFMNKHWO')  # what grows with the model; V, T and the like do not


def hidden(path: str) -> bool:
  """Whether a parameter is a matrix from one width to another, or one such for each expert."""
  fan_in, letters = axes.param(path).fan_in, axes.letters(path).removeprefix(axes.stack_of(path))
  return bool(fan_in) and set(letters) <= _WIDTHS


def rate_factor(config: Config, path: str) -> float:
  """What the learning rate of one parameter of a resolved config is multiplied by."""
  mup, rule = _mup(config), axes.param(path)
  if mup is None:
    return 1.0
  if set('VTSA') & set(rule.letters) and rule.fan_in:
    return logit_scale(config)
  if not hidden(path) and not (rule.fan_in == 'D' and 'E' in rule.letters):
    return 1.0
  shape = zip(axes.letters(path), count.shapes(config)[path], strict=True)
  base = mup.base_d_model * (4 if rule.fan_in in ('F', 'M') else 1)
  return base / prod(size for letter, size in shape if letter in rule.fan_in)


def attention_scale(config: Config) -> float:
  """What products of queries and keys are multiplied by: 1/√head_dim, under muP ∝ 1/head_dim."""
  mup, model = _mup(config), config.model
  if mup is None:
    return model.head_dim**-0.5
  return mup.base_head_dim**0.5 / model.head_dim


def logit_scale(config: Config) -> float:
  """What logits are multiplied by: 1, under muP ∝ 1/√d_model."""
  mup = _mup(config)
  return 1.0 if mup is None else (mup.base_d_model / config.model.d_model) ** 0.5


def _mup(config: Config) -> Any:
  """The declaration of muP with its numbers; None under `standard`."""
  variant = spec.parse('optim.parametrization', config.optim.parametrization)
  return variant if variant.variant == 'mup' else None
