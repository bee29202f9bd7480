"""What the table of a family of models is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformer.interop.keys import Key
from transformer.interop.layout import Only, Tensor

TIED, UNTIED = (('model.tied', True),), (('model.tied', False),)
SHARED, UNSHARED = (('model.shared_source', True),), (('model.shared_source', False),)


@dataclass(frozen=True)
class Family:
  """A family of models.

  model_type, architecture: as config.json names them. keys: of config.json. fixed: settings that
  all of its models have. must: keys with the one value at which the model is the one here, absent
  or present. harmless: keys that change no logits. tensors: of its files; those of parameters that
  a config does not have are left out. copies: tensors that a file may hold besides, of parameters
  it has already. sinusoids: tensors that may be there, of fixed positions. unused: patterns of
  tensors that do not enter the logits. old_names: (pattern, its replacement) of names in older
  files. heads_divide: transformers takes no d_model that the number of heads does not divide.
  """

  model_type: str
  architecture: str
  keys: tuple[Key, ...]
  fixed: dict[str, Any]
  tensors: tuple[Tensor, ...]
  must: dict[str, Any] = field(default_factory=dict)
  harmless: tuple[str, ...] = ()
  copies: tuple[Tensor, ...] = ()
  sinusoids: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()
  old_names: tuple[tuple[str, str], ...] = ()
  heads_divide: bool = False


def dense(theirs: str, ours: str, weight: str) -> list[Tensor]:
  """A linear layer of torch: rows are outputs, and so is the bias."""
  rows = weight[: weight.index(')') + 1] if weight[0] == '(' else weight[0]
  bias = Tensor(f'{theirs}.bias', ((f'{ours}_bias', rows),))
  return [Tensor(f'{theirs}.weight', ((ours, weight),)), bias]


def norm(theirs: str, ours: str) -> list[Tensor]:
  """Its scale, and its bias where it has one."""
  leaves = {'weight': 'scale', 'bias': 'bias'}
  return [Tensor(f'{theirs}.{t}', ((f'{ours}/{o}', 'D'),)) for t, o in leaves.items()]


def table(theirs: str, ours: str, layout: str = 'VD', only: Only = (), **how: bool) -> list[Tensor]:
  """One parameter as one tensor. how: of a copy, what it is to the original."""
  return [Tensor(theirs, ((ours, layout),), only, **how)]


def attention(theirs: str, ours: str, query: str, key: str, value: str, out: str) -> list[Tensor]:
  """The four projections, named after `theirs`, of which out alone has no heads in its rows."""
  return [
    *dense(theirs + query, f'{ours}/query', '(NH)D'),
    *dense(theirs + key, f'{ours}/key', '(KH)D'),
    *dense(theirs + value, f'{ours}/value', '(KW)D'),
    *dense(theirs + out, f'{ours}/out', 'D(NW)'),
  ]
