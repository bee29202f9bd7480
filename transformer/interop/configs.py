"""config.json to settings and back, by the table of a family."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformer import count, spec
from transformer.config import SETTINGS, Config, resolve, routing
from transformer.errors import UserError
from transformer.interop import shards
from transformer.interop.families import FAMILIES
from transformer.interop.family import Family
from transformer.interop.keys import HARMLESS, shown

_MUST = {  # of any family, at these values; a table's own come before
  **{'pruned_heads': {}, 'quantization_config': None, 'tie_encoder_decoder': False},
  **{'rope_parameters.rope_type': 'default', 'rope_scaling.rope_type': 'default'},
  **{'rope_scaling.type': 'default', 'is_decoder': False, 'is_encoder_decoder': False},
  'add_cross_attention': False,
  'cross_attention_hidden_size': None,
}
# What decides the logits: all of a model's settings but these, those of its FFN but widths, which
# shapes tell.
_OF_TRAINING = ('model.dropout', 'model.stochastic_depth', 'model.out_init', 'model.dtype')
_OF_FFN = ('activation', 'encoder_activation', 'hidden_layers', 'shared', 'bias')
_OF_MOE = ('experts', 'router', 'layers', 'shared_experts', 'granularity')
_BIASES = ('model.bias', 'model.logits_bias', 'ffn.bias')
_DECISIVE = [
  *(n for n in SETTINGS if n.startswith('model.') and n not in (*_OF_TRAINING, 'model.unroll')),
  *(f'ffn.{name}' for name in _OF_FFN),
  *(f'moe.{name}' for name in _OF_MOE),
  'optim.parametrization',
]


def read_config(path: Path) -> tuple[Family, Config]:
  """The family and the resolved config of a config.json, its data aside.

  Raises UserError naming file and key for what the tables do not know.
  """
  tree = _spelt(shards.read_json(path))
  kind = tree.get('model_type')
  family = FAMILIES.get(kind) if isinstance(kind, str) else None
  if family is None:
    known = ', '.join(FAMILIES)
    raise UserError(f'{path}: model_type={shown(kind)} is not known; there are {known}')
  must = _MUST | family.must
  names = {key.name for key in family.keys}
  for name, value in tree.items():
    if name in must:
      if value != must[name] or isinstance(value, bool) != isinstance(must[name], bool):
        raise UserError(
          f'{path}: {name}={shown(value)} is not supported; {kind} is known with '
          f'{shown(must[name])} alone'
        )
    elif value is not None and name not in (*names, *family.harmless, *HARMLESS):
      raise UserError(f'{path}: {name}={shown(value)} is a feature of {kind} that is not known')
  return family, _settings(path, family, tree)


def _spelt(tree: dict) -> dict:
  """A config.json with what it nests about rotary positions beside the rest."""
  nested = ('rope_parameters', 'rope_scaling')  # of the two the last is what transformers takes
  flat = {name: value for name, value in tree.items() if name not in nested}
  for group in nested:
    values = tree.get(group)
    if isinstance(values, dict):
      flat |= {(n if n == 'rope_theta' else f'{group}.{n}'): v for n, v in values.items()}
    elif values is not None:
      flat[group] = values
  return flat


def _settings(path: Path, family: Family, tree: dict) -> Config:
  tree = {key.name: key.default for key in family.keys} | tree
  found: dict[str, Any] = dict(family.fixed)
  told: dict[str, str] = {}
  for key in family.keys:
    if key.unread:
      continue
    said = f'{key.name}={shown(tree[key.name])}'
    try:
      value = key.read(tree[key.name], tree)
      value = spec.check_value(f'{path}: {said}', SETTINGS[key.setting], value)
    except (ValueError, TypeError, ArithmeticError) as e:
      reason = str(e) if isinstance(e, ValueError) else 'does not go with the other sizes'
      raise UserError(f'{path}: {said}: {reason}') from None
    if key.setting in told and found[key.setting] != value:
      raise UserError(
        f'{path}: {told[key.setting]} and {said}: are one setting here; equal ones run'
      )
    found[key.setting], told[key.setting] = value, said
  try:
    # Without text, whose tokenizer would have a say in the vocabulary.
    return resolve(Config().replace(**found, **{'data.source': 'synthetic'}))
  except UserError as e:
    raise UserError(f'{path}: {e}') from None


def write_config(config: Config) -> tuple[Family, dict, Config]:
  """The family that a resolved config belongs to, its config.json, and the config as written.

  The last has biases where the family has them and the model none, to be written as zeros, and of
  two spellings of one router the first. Raises UserError naming the settings that no family has.
  """
  refusals = []
  for family in FAMILIES.values():
    wider = _completed(config, family)
    tree = {key.name: key.write(wider.get(key.setting), wider) for key in family.keys}
    tree |= {'model_type': family.model_type, 'architectures': [family.architecture]}
    different = _differences(wider, family, tree)
    if not different:
      if 'rope_theta' in tree:  # as transformers 5 has it; before, it stood alone
        tree['rope_parameters'] = {'rope_type': 'default', 'rope_theta': tree['rope_theta']}
      return family, tree, wider
    refusals.append((len(different), family.model_type, different))
  _, nearest, different = min(refusals, key=lambda refusal: refusal[0])
  name = next(iter(different))
  has = ', '.join(f'{name}={value}' for name, value in different.items())
  raise UserError(
    f'--{name}={config.get(name)}: no family of transformers is such a model; {nearest}, the '
    f'nearest, has {has}'
  )


def _completed(config: Config, family: Family) -> Config:
  """A config with the biases that all models of a family have; `score=after` spelt renormalised."""
  changes = {name: True for name in _BIASES if family.fixed.get(name)}
  changes |= {'model.qkv_bias': False} if 'model.bias' in changes else {}
  router = routing.router(config)
  if router.variant == 'topk' and router.score == 'after':
    router = dataclasses.replace(router, score='softmax', renormalise=True)
    changes['moe.router'] = spec.canonical(router)
  return config.replace(**changes)


def _differences(config: Config, family: Family, tree: dict) -> dict[str, Any]:
  """What is lost if a config is written as `tree`: settings, with what they would become."""
  try:
    back = _settings(Path('config.json'), family, tree)
  except UserError:  # no such model of this family, as with an odd head width
    return dict.fromkeys(_DECISIVE, 'others')
  found, heads = {}, config.model.num_heads
  if not heads or (family.heads_divide and config.model.d_model % heads):
    found['model.num_heads'] = f'a divisor of {config.model.d_model}'
  if not config.ffn.d_ff:
    found['ffn.d_ff'] = 'a number above 0'
  found |= {name: back.get(name) for name in _DECISIVE if config.get(name) != back.get(name)}
  if not found and count.shapes(config) != count.shapes(back):
    found['ffn.ratios' if config.ffn.ratios else 'ffn.d_ff'] = back.ffn.d_ff
  return found
