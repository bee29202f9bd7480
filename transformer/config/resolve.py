"""From what was asked to what runs: every 0 and blank filled in, every combination checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from transformer import axes, spec
from transformer.config.settings import SETTINGS, Config
from transformer.errors import UserError


def resolve(config: Config) -> Config:
  """Returns the config that really runs: no setting left to choose. Idempotent.

  Raises UserError where a value or a combination of values cannot run.
  """
  for path, declared in SETTINGS.items():
    spec.check_value(f'--{path}', declared, config.get(path))
  out = {slot: spec.canonical(spec.parse(slot, config.get(slot))) for slot in spec.slots()}
  out |= _model(config) | _ffn(config)
  if not config.optim.learning_rate:
    out['optim.learning_rate'] = float(f'{0.768 / config.model.d_model:.3g}')
  out['train.eval_every'] = config.train.eval_every or config.train.steps
  out['train.checkpoint_every'] = config.train.checkpoint_every or out['train.eval_every']
  batch, parts = config.data.batch_size, config.train.accumulate
  if batch % parts:
    raise UserError(f'--data.batch_size={batch}: not divisible by --train.accumulate={parts}')
  if axes.parse_mesh(config.parallel.mesh) and config.parallel.mode == 'pmap':
    raise UserError('--parallel.mesh: is not for --parallel.mode=pmap; leave one of them out')
  out['parallel.mode'] = 'pmap' if config.parallel.mode == 'pmap' else 'mesh'
  return config.replace(**out)


def _model(config: Config) -> dict:
  model = config.model
  if not model.head_dim and model.d_model % model.num_heads:
    raise UserError(
      f'--model.num_heads={model.num_heads}: does not divide --model.d_model={model.d_model}; '
      'choose a divisor or set --model.head_dim'
    )
  head_dim = model.head_dim or model.d_model // model.num_heads
  positions = spec.parse('model.positions', model.positions)
  if positions.variant == 'rotary' and head_dim % 2:
    raise UserError(f'--model.positions=rotary: needs an even head width, not {head_dim}')
  if positions.variant == 'sinusoidal' and model.d_model % 2:
    raise UserError(f'--model.positions=sinusoidal: needs an even d_model, not {model.d_model}')
  source = spec.parse('data.source', config.data.source)
  vocab = spec.parse('data.tokenizer', config.data.tokenizer).vocab_size
  if source.text and 0 < model.vocab_size < vocab:
    raise UserError(
      f"--model.vocab_size={model.vocab_size}: below the tokenizer's {vocab}; "
      'leave it 0 or set --data.tokenizer'
    )
  return {'model.head_dim': head_dim, 'model.vocab_size': model.vocab_size or vocab}


def _ffn(config: Config) -> dict:
  """d_ff is the target rounded to multiple_of; ratio becomes what was achieved."""
  ffn, d_model = config.ffn, config.model.d_model
  target = ffn.d_ff or ffn.ratio * d_model
  d_ff = max(1, round(target / ffn.multiple_of)) * ffn.multiple_of
  return {'ffn.d_ff': d_ff, 'ffn.ratio': d_ff / d_model}


def sort_settings(config: Config, kinds: tuple[str, ...]) -> dict[str, Any]:
  """Flag name -> value of the settings of these kinds, arguments of variants spelt out."""
  found = {}
  for path, declared in SETTINGS.items():
    if path in spec.slots():
      variant = spec.parse(path, config.get(path))
      if declared.metadata['kind'] in kinds:
        found[path] = variant.variant
      for f in dataclasses.fields(variant):
        kind = f.metadata['kind'] if declared.metadata['kind'] == 'static' else 'traced'
        if kind in kinds:
          found[f'{path}.{f.name}'] = getattr(variant, f.name)
    elif declared.metadata['kind'] in kinds:
      found[path] = config.get(path)
  return found


def static_key(config: Config) -> str:
  """Equal for two resolved configs exactly if one compiled program serves both."""
  return json.dumps(sort_settings(config, ('static',)), sort_keys=True)


def hyper(config: Config) -> dict[str, float]:
  """The numbers the compiled step reads at run time, by flag name."""
  traced = sort_settings(config, ('traced',))
  return {n: float(v) for n, v in traced.items() if n != 'seed' and not n.startswith('data.')}


def result_settings(config: Config, without: tuple[str, ...] = ()) -> dict[str, Any]:
  """The settings of a resolved config that change its result and differ from their default."""
  default = sort_settings(Config(), ('static', 'traced'))
  for slot in spec.slots():  # of any variant, so that a new argument of it changes no hash either
    variant = spec.parse(slot, config.get(slot))
    default |= {f'{slot}.{f.name}': f.default for f in dataclasses.fields(variant)}
  return {
    path: value
    for path, value in sort_settings(config, ('static', 'traced')).items()
    if default[path] != value and path not in without
  }


def config_hash(config: Config) -> str:
  """Eight hex digits naming the result of a resolved config.

  Covers the settings that change the result and differ from their default, so that placement,
  launch and logging, and settings added later, change no hash.
  """
  text = json.dumps(result_settings(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]
