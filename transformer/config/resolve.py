"""From what was asked to what runs: every 0 and blank filled in, every combination checked."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
from typing import Any

from transformer import axes, hardware, spec
from transformer.config import routing
from transformer.config.data import check_source
from transformer.config.placement import parse_distributed
from transformer.config.settings import SETTINGS, Config
from transformer.errors import UserError


def resolve(config: Config) -> Config:
  """Returns the config that really runs: no setting left to choose. Idempotent.

  Runs the file of --plugin, whose variants are known from then on. Raises UserError where a value
  or a combination of values cannot run.
  """
  from transformer import plugin  # which declares by means of this package

  plugin.load(config.plugin)
  for path, declared in SETTINGS.items():
    spec.check_value(f'--{path}', declared, config.get(path))
  check_source(config)
  config = config.replace(**idle(config))
  out = {slot: spec.canonical(spec.parse(slot, config.get(slot))) for slot in spec.slots()}
  out |= _model(config) | _vocabulary(config) | _ffn(config) | _optim(config)
  out['train.eval_every'] = config.train.eval_every or config.train.steps
  out['train.checkpoint_every'] = config.train.checkpoint_every or out['train.eval_every']
  if config.train.init == 'continue' and not config.train.init_from:
    raise UserError('--train.init=continue: of which run? Name it by --train.init_from')
  batch, parts = config.data.batch_size, config.train.accumulate
  if batch % parts:
    raise UserError(f'--data.batch_size={batch}: not divisible by --train.accumulate={parts}')
  if axes.parse_mesh(config.parallel.mesh) and config.parallel.mode == 'pmap':
    raise UserError('--parallel.mesh: is not for --parallel.mode=pmap; leave one of them out')
  distributed = parse_distributed(config.parallel.distributed) != 'off'
  if distributed and config.parallel.mode == 'pmap':
    raise UserError('--parallel.mode=pmap: is for one process; of several the mode is mesh')
  if distributed or axes.parse_mesh(config.parallel.mesh):
    out['parallel.mode'] = 'mesh'
  config = config.replace(**out)
  stacks = {'layers': widths(config)}
  if config.model.architecture == 'encoder_decoder':
    stacks['encoder_layers'] = widths(config, encoder=True)
  return config.replace(**routing.settle(config, stacks))


def _model(config: Config) -> dict:
  model, heads = config.model, config.model.num_heads
  if heads and not model.head_dim and model.d_model % heads:
    raise UserError(
      f'--model.num_heads={heads}: does not divide --model.d_model={model.d_model}; '
      'choose a divisor or set --model.head_dim'
    )
  head_dim = (model.head_dim or model.d_model // heads) if heads else 0
  v_head_dim = (model.v_head_dim or head_dim) if heads else 0
  kv_heads = model.num_kv_heads or heads
  if (heads and heads % kv_heads) or kv_heads > heads:
    raise UserError(f'--model.num_kv_heads={kv_heads}: does not divide --model.num_heads={heads}')
  if not heads and model.architecture == 'encoder_decoder':
    raise UserError('--model.num_heads=0: a decoder reads its source by attention; give it heads')
  if model.bias and model.qkv_bias:
    raise UserError('--model.qkv_bias: --model.bias has them all; leave one of them out')
  positions = spec.parse('model.positions', model.positions)
  if positions.acts_on in ('heads', 'scores') and not heads:
    raise UserError(
      f'--model.positions={model.positions}: acts in attention, and --model.num_heads=0 has none; '
      'try sinusoidal, learned or none'
    )
  if positions.variant == 'rotary' and head_dim % 2:
    raise UserError(f'--model.positions=rotary: needs an even head width, not {head_dim}')
  if positions.variant == 'sinusoidal' and model.d_model % 2:
    raise UserError(f'--model.positions=sinusoidal: needs an even d_model, not {model.d_model}')
  if positions.variant == 'relative' and model.architecture != 'decoder' and positions.buckets < 4:
    raise UserError(
      f'--model.positions={model.positions}: an encoder needs 4 buckets or more, half of them for '
      'keys ahead'
    )
  activation = spec.parse('ffn.activation', config.ffn.activation)
  if model.head == 'transform' and (len(activation.inputs) > 1 or activation.leaves):
    raise UserError(
      f'--model.head=transform: uses --ffn.activation, and {config.ffn.activation} is gated or has '
      'parameters; take a plain one'
    )
  encoder_layers = model.num_encoder_layers
  return {
    'model.dtype': hardware.fast_dtype() if model.dtype == 'auto' else model.dtype,
    'model.head_dim': head_dim,
    'model.v_head_dim': v_head_dim if v_head_dim != head_dim else 0,
    'model.num_kv_heads': kv_heads if kv_heads < heads else 0,
    'model.num_encoder_layers': encoder_layers if encoder_layers != model.num_layers else 0,
    'data.source_len': (config.data.source_len or config.data.seq_len)
    if model.architecture == 'encoder_decoder'
    else 0,
  }


def _vocabulary(config: Config) -> dict:
  """The tokenizer's entries, and for an encoder that learns from masked tokens the mask."""
  model, mask = config.model, config.data.mask_token
  source = spec.parse('data.source', config.data.source)
  tokenizer = spec.parse('data.tokenizer', config.data.tokenizer)
  text, vocab = getattr(source, 'text', True), tokenizer.vocab_size
  if source.variant == 'tokens' and not model.vocab_size:
    raise UserError(
      f'--model.vocab_size=0: --data.source={config.data.source} has no tokenizer to tell it; set '
      'it, as in --model.vocab_size=50257'
    )
  own_mask = model.architecture == 'encoder' and mask < 0
  if own_mask and vocab:
    vocab += 1
  if text and 0 < model.vocab_size < vocab:
    raise UserError(
      f"--model.vocab_size={model.vocab_size}: below the tokenizer's {vocab}"
      f'{" with the mask" if own_mask else ""}; '
      'leave it 0 or set --data.tokenizer'
    )
  vocab = model.vocab_size or vocab
  if mask >= vocab:
    raise UserError(f'--data.mask_token={mask}: is no id of a vocabulary of {vocab}')
  return {  # without text, a tokenizer tells the vocabulary at most
    'data.tokenizer': spec.canonical(tokenizer) if text else SETTINGS['data.tokenizer'].default,
    'data.mask_token': vocab - 1 if own_mask else mask,
    'model.vocab_size': vocab,
  }


_OF_ATTENTION = (
  *('head_dim', 'num_kv_heads', 'qk_norm', 'bias', 'qkv_bias', 'out_init', 'attention_cap'),
  *('v_head_dim', 'attention_window', 'parallel_branches'),
)
_OF_FFN = ('activation', 'multiple_of', 'hidden_layers', 'bias', 'dropout', 'down_init')
_OF_ENCODER = ('model.token_types', 'data.mask_token', 'loss.mask_rate')
_OF_BOTH = (
  *('model.num_encoder_layers', 'model.shared_source', 'data.source_len'),
  *('ffn.encoder_ratios', 'ffn.encoder_activation', 'train.decoded'),
)


def idle(config: Config) -> dict[str, Any]:
  """Defaults for settings of what is not there: configs that run alike become equal."""
  absent = []
  if not config.model.num_heads:
    absent += [f'model.{name}' for name in _OF_ATTENTION]
  if config.model.architecture != 'encoder':
    absent += _OF_ENCODER
  if config.model.architecture != 'encoder_decoder':
    absent += _OF_BOTH
  both = config.model.architecture == 'encoder_decoder'
  if not config.ffn.d_ff and not any(ratios(config)) and not (both and any(encoder_ratios(config))):
    of_head = ['activation'] * (config.model.head == 'transform')  # which uses it too
    absent += ['model.parallel_branches']
    absent += [f'ffn.{name}' for name in _OF_FFN if name not in of_head]
  absent += routing.idle(config)
  if config.model.norm == 'none':
    absent += ['model.norm_placement', 'model.embedding_norm']
  if not getattr(spec.parse('data.source', config.data.source), 'fields', True):
    absent += ['data.text_field', 'data.group_field']
  return {path: SETTINGS[path].default for path in absent}


def _ffn(config: Config) -> dict:
  """d_ff is the target rounded to multiple_of; ratio becomes what was achieved.

  With a pattern of ratios both are the means asked for, and `widths` rounds each layer's, once.
  """
  ffn, d_model = config.ffn, config.model.d_model
  pattern = ratios(config)
  target = ffn.d_ff or sum(pattern) / len(pattern) * d_model
  step = 1 if ffn.ratios else routing.width_step(config)
  d_ff = max(1, round(target / step)) * step if target else 0
  bare = '--ffn.ratio=0' if not d_ff else f'--ffn.ratios={ffn.ratios}'
  if not config.model.num_heads and (not d_ff or (ffn.ratios and 0 in pattern)):
    raise UserError(f'{bare}: and --model.num_heads=0 leave nothing in a block')
  if ffn.shared and (not d_ff or len(set(pattern)) > 1):
    raise UserError('--ffn.shared: needs one width, above 0, in all layers')
  if ffn.shared and (ffn.encoder_ratios or ffn.encoder_activation):
    raise UserError('--ffn.shared: is one FFN for encoder and decoder; leave --ffn.encoder_… out')
  out = {'ffn.d_ff': d_ff, 'ffn.ratio': d_ff / d_model, 'ffn.ratios': ffn.ratios.replace(' ', '')}
  if config.model.architecture == 'encoder_decoder':
    encoder_ratios(config)  # raises where they are wrong
    out['ffn.encoder_ratios'] = ffn.encoder_ratios.replace(' ', '')
    if ffn.encoder_activation:
      own = spec.canonical(_parsed('ffn.encoder_activation', ffn.encoder_activation))
      shared = spec.canonical(spec.parse('ffn.activation', ffn.activation))
      out['ffn.encoder_activation'] = own if own != shared else ''
  return out


def _parsed(path: str, text: str) -> Any:
  """The activation in a setting that is not the slot itself; a refusal names that setting."""
  try:
    return spec.parse('ffn.activation', text)
  except UserError as e:
    raise UserError(str(e).replace('--ffn.activation', f'--{path}', 1)) from None


def ratios(config: Config) -> list[float]:
  """The width ratio of each layer, as --ffn.ratio or --ffn.ratios asks for it.

  Of an encoder_decoder's decoder.
  """
  ffn = config.ffn
  return (
    _pattern('ffn.ratios', ffn.ratios, 'model.num_layers', config)
    or [ffn.ratio] * config.model.num_layers
  )


def encoder_ratios(config: Config) -> list[float]:
  """The same of an encoder_decoder's encoder."""
  ffn, model = config.ffn, config.model
  name = 'ffn.encoder_ratios' if ffn.encoder_ratios else 'ffn.ratios'
  count = 'model.num_encoder_layers' if model.num_encoder_layers else 'model.num_layers'
  return _pattern(name, config.get(name), count, config) or [ffn.ratio] * config.get(count)


def _pattern(name: str, text: str, count: str, config: Config) -> list[float]:
  """Ratios written as one text, a number a layer; empty where there is none."""
  layers = config.get(count)
  if not text:
    return []
  ramp = re.fullmatch(r'ramp\(([^,]+),([^,]+)\)', text.replace(' ', ''))
  try:
    found = [float(part) for part in (ramp.groups() if ramp else text.split(','))]
  except ValueError:
    found = [math.nan]
  alone = name == 'ffn.ratios'  # beside a decoder an encoder may have none
  if not all(0 <= ratio <= 1e6 for ratio in found) or (alone and not any(found)):
    raise UserError(f"--{name}={text}: should be numbers from 0 on, '2,4,8,4' or 'ramp(2,6)'")
  if ramp:
    steps = [i / (layers - 1) for i in range(layers)] if layers > 1 else [0.5]
    return [found[0] + step * (found[1] - found[0]) for step in steps]
  if layers % len(found):
    raise UserError(f'--{name}={text}: {len(found)} ratios do not divide --{count}={layers}')
  return found * (layers // len(found))


def widths(config: Config, encoder: bool = False) -> list[int]:
  """d_ff of each layer of a resolved config; 0 where a layer has no FFN.

  encoder: of an encoder_decoder's encoder. --ffn.encoder_ratios are of d_model, whatever d_ff is.
  """
  pattern, ffn = ratios(config), config.ffn
  mine = encoder_ratios(config) if encoder else pattern
  if encoder and ffn.encoder_ratios:
    unit = config.model.d_model
  elif not ffn.ratios:
    return [ffn.d_ff] * len(mine)
  else:
    unit = ffn.d_ff * len(pattern) / sum(pattern)
  step = routing.width_step(config)
  return [max(1, round(r * unit / step)) * step if r else 0 for r in mine]


def _optim(config: Config) -> dict:
  """The rate follows the width at which it was found; muP carries it to others itself."""
  optim, width = config.optim, config.model.d_model
  name = spec.parse('optim.name', optim.name)
  rule = spec.parse('optim.parametrization', optim.parametrization)
  if rule.variant == 'mup':
    width = rule.base_d_model
    if not name.mup:
      known = ', '.join(n for n, d in spec.variants('optim.name').items() if d.mup)
      raise UserError(f'--optim.parametrization=mup: has no rule for {name.variant}; try {known}')
    if getattr(name, 'l2', 0.0):
      raise UserError(
        f'--optim.name={optim.name}: l2 depends on width, which mup forbids; take adamw'
      )
    if config.model.embedding_scale != 'sqrt_d_model':
      raise UserError('--optim.parametrization=mup: needs --model.embedding_scale=sqrt_d_model')
  schedule = spec.parse('optim.schedule', optim.schedule)
  if schedule.variant == 'wsd' and schedule.warmup + schedule.decay > 1:
    raise UserError(
      f'--optim.schedule={optim.schedule}: warmup and decay are {schedule.warmup + schedule.decay} '
      'of the steps; they should be 1 at most'
    )
  out = {'optim.learning_rate': optim.learning_rate or float(f'{name.rate * 0.768 / width:.3g}')}
  if hasattr(name, 'l2'):
    if optim.weight_decay not in (0.0, SETTINGS['optim.weight_decay'].default):
      raise UserError(
        f'--optim.weight_decay={optim.weight_decay}: {name.variant} decays through its gradient; '
        f'set --optim.name={name.variant}(l2={optim.weight_decay})'
      )
    out['optim.weight_decay'] = 0.0
  return out


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
  apart = ('seed', 'data.', 'train.init', 'train.decoded')  # read by the host alone
  apart += () if config.moe.experts else ('moe.',)
  return {n: float(v) for n, v in traced.items() if not n.startswith(apart)}


@functools.cache
def _defaults() -> dict[str, Any]:
  # As before there was auto: what it comes to counts as any value, and old hashes stay.
  before = Config().replace(**{'model.dtype': 'float32'})
  return sort_settings(before, ('static', 'traced'))


def result_settings(config: Config, without: tuple[str, ...] = ()) -> dict[str, Any]:
  """The settings of a resolved config that change its result and differ from their default."""
  default = dict(_defaults())
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
