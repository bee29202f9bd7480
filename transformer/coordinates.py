"""The coordinate check of muP: how large activations are, by width, over the first steps.

Yang et al. 2022, §D.1: under a right parametrization no curve leaves its place as the model widens;
under the standard one they blow up. Both take the rate that muP takes at any width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformer import layers, objective, state, step
from transformer.config import Config, resolve, routing

RULES = ('standard', 'mup')
WIDTHS = ('model.d_model', 'ffn.d_ff')
CHANGE = 'change of logits'  # since before the first step: what is drawn at random is not in it


def sweep(config: Config, setting: str) -> list[int]:
  """Widths from an eighth of the model's own on, doubled up to it, that `config` can have.

  config: as asked, not resolved: a head_dim that was asked for stays and the heads grow in number,
  else they keep their number and grow. Empty where the model has no such width.
  """
  shape = resolve(config)
  full = shape.get(setting)
  if setting == 'ffn.d_ff':
    first = _multiple(full / 8, shape.ffn.multiple_of)
  elif heads := _heads(config, full / 8):
    first = _multiple(full * heads / shape.model.num_heads, 2)
  else:  # even, and heads of even width, as positions want them
    first = _multiple(full / 8, 2 * max(1, shape.model.num_heads))
  return [first * n for n in (1, 2, 4, 8) if full and first * n <= max(full, 2 * first)]


def _heads(config: Config, width: float) -> int:
  """The number of heads at a d_model; 0 where it is as asked at any."""
  model = config.model
  if not (model.num_heads and model.head_dim):
    return 0
  unit = model.num_kv_heads or 1
  return _multiple(model.num_heads * width / model.d_model + unit / 2, unit)  # the nearest


def _multiple(number: float, unit: int) -> int:
  """The greatest multiple of `unit` up to `number`, and at least one of it."""
  return max(1, int(number // unit)) * unit


def coordinates(
  config: Config,
  setting: str,
  widths: Sequence[int],
  steps: int = 4,
  watch: Callable[[], None] = lambda: None,
) -> dict:
  """Trains `config` at several widths for a few steps on one batch of random tokens.

  config: as asked, not resolved. setting: one of WIDTHS; widths: as of `sweep`. d_model moves with
  its ratio of d_ff kept, the first one being the base of muP; d_ff moves alone. `watch` is called
  after each of the 2 · len(widths) runs. Returns plain JSON: setting; widths; sizes, by rule;
  slopes, by rule and tensor, of log mean |x| against log width after the last step.
  """
  sizes = {}
  for rule in RULES:
    runs = []
    for width in widths:
      runs.append(_run(_at(config, rule, setting, width, widths[0]), steps))
      watch()
    sizes[rule] = {
      name: [[run[t][name] for run in runs] for t in range(steps + 1)] for name in runs[0][0]
    }
  slopes = {
    rule: {name: _slope(widths, by_step[-1]) for name, by_step in sizes[rule].items()}
    for rule in RULES
  }
  return {'setting': setting, 'widths': list(widths), 'sizes': sizes, 'slopes': slopes}


def _at(config: Config, rule: str, setting: str, width: int, first: int) -> Config:
  """The model at a width, at the rate that muP gives it at any."""
  shape, length = resolve(config), 32
  a_place = routing.experts(shape) / length  # the factor at which each expert has one
  settings = {
    setting: width,
    'model.vocab_size': 64,
    'moe.group_size': 0,
    'moe.capacity_factor': max(shape.moe.capacity_factor, a_place),
    'moe.eval_capacity_factor': max(shape.moe.eval_capacity_factor, a_place),
    'data.source': 'synthetic',
    'data.seq_len': length,
    'data.source_len': 0,
    'data.batch_size': 8,
    'train.accumulate': 1,
    'optim.schedule': 'constant(warmup=0)',
  }
  base, head_dim = shape.model.d_model, shape.model.head_dim
  if setting == 'model.d_model':
    settings |= {'ffn.d_ff': 0, 'ffn.ratio': shape.ffn.ratio}
    base = first
    if heads := _heads(config, first):
      settings['model.num_heads'] = heads * width // first
    elif shape.model.num_heads:
      head_dim = first // shape.model.num_heads
  mup = f'mup(base_d_model={base}, base_head_dim={head_dim or 1})'
  settings['optim.parametrization'] = mup
  wide = resolve(config.replace(**settings))
  if rule == 'mup':
    return wide
  rate = {'optim.learning_rate': wide.optim.learning_rate, 'optim.parametrization': rule}
  return resolve(config.replace(**settings | rate))


def _run(config: Config, steps: int) -> list[dict[str, float]]:
  """Mean |x| of each tensor before the first step and after each; one program."""
  rng, length = np.random.default_rng(0), config.data.seq_len
  shape = (config.data.batch_size, config.data.source_len + length + 1)
  tokens = rng.integers(1, config.model.vocab_size, shape).astype(np.int32)
  batch = {'tokens': tokens, 'rows': np.arange(shape[0], dtype=np.int32)}

  def go(seed: np.uint32, hyper: dict) -> dict:
    def one(carry: tuple, _: None) -> tuple:
      current, first_BTV = carry
      logits_BTV, sizes = _look(config, current.variables, tokens)
      first_BTV = jnp.where(current.step == 0, logits_BTV, first_BTV)
      sizes[CHANGE] = jnp.mean(jnp.abs(logits_BTV - first_BTV))
      current, _ = step.train_step(config, current, batch, lambda x: x)
      return (current, first_BTV), sizes

    nothing_BTV = jnp.zeros((shape[0], length, config.model.vocab_size))
    carry = state.create(config, seed, hyper), nothing_BTV
    return jax.lax.scan(one, carry, length=steps + 1)[1]

  seen = jax.device_get(jax.jit(go)(np.uint32(0), state.hyper_arrays(config)))
  names = [name for name in (*layers.ORDER, CHANGE) if name in seen]
  return [{name: float(seen[name][t]) for name in names} for t in range(steps + 1)]


def _look(config: Config, params: dict, tokens: jax.Array) -> tuple[jax.Array, dict]:
  """The logits, and mean |x| by name, over layers where a name stands in each."""
  asked = objective.example(config, tokens)
  (logits_BTV, _), seen = step.forward(config, params, asked, watch=('observed',))
  found: dict[str, list] = {}
  for path, value in _leaves(seen['observed']):
    found.setdefault(path, []).append((value['sum_abs'].sum(), value['count'].sum()))
  totals = {name: [sum(parts) for parts in zip(*of, strict=True)] for name, of in found.items()}
  return logits_BTV, {name: total / count for name, (total, count) in totals.items()}


def _leaves(tree: dict, owner: str = '') -> list[tuple[str, dict]]:
  found = []
  for name, value in tree.items():
    path = f'{owner}/{name}'
    found += [(layers.order_name(path), value)] if 'sum_abs' in value else _leaves(value, path)
  return found


def _slope(widths: Sequence[int], sizes: Sequence[float]) -> float:
  """Of the least-squares line through (log width, log size); 0 through a single point."""
  x, y = np.log(widths), np.log(np.maximum(sizes, 1e-30))
  x = x - x.mean()
  return float(x @ y / max(x @ x, 1e-30))
