"""What a model looks like from inside: its FFN at evaluation, every tensor of a training step.

All are pure functions of (config, parameters or state, batch), compiled apart from the training
step, which they leave as it is. What has a value a layer comes as one array (L,) under the name
without the layer, an encoder's layers before a decoder's; NaN, or a count of 0, where a layer has
no such tensor.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transformer import axes, count, objective, optimizer, spec, step
from transformer.activations import activate
from transformer.config import Config
from transformer.params import path_of
from transformer.state import TrainState

_MOST = 1024  # tokens that covariances are made of
_WIDEST = 2048  # d_model up to which spectra are cheap enough
_FLAT = 0.05  # slope below which a unit counts as saturated
Size = dict[str, jax.Array]  # sum_squares, sum_abs, largest (of |x|), count, finite


# --- The FFN at evaluation.


def ffn_statistics(config: Config, params: dict, batch: step.Batch) -> dict[str, jax.Array]:
  """What `with_spectra` makes rows ffn/<name> of: the FFN of every layer, on held-out tokens.

  h is the last hidden layer, its units F; tokens are those that have a target,
  in an encoder all of them. Of experts there is update_ratio alone.
    zeros           share of h that is exactly 0
    dead            share of units that are 0 on every token of the batch
    kurtosis        mean over tokens of E[(h − mean)⁴] / var² over units; 3: a normal distribution
    effective_rank  tr(C)² / ‖C‖² of the covariance C of h over 1,024 tokens: the participation
                    ratio, between 1 and F (Gao et al. 2017, eq. 5)
    saturation      share of inputs to the function where its slope is below .05 in absolute value;
                    the function is that of the gate where there is one
    update_ratio    rms of what the FFN adds / rms of the residual stream it adds it to
    up_norm         largest singular value σ of W_up; gate_norm and down_norm likewise
    up_effective_rank  exp(−Σ p log p), p = σ / Σσ, of W_up (Roy & Vetterli 2007); gate_…, down_…
  """
  asked = objective.example(config, batch['tokens'])
  _, seen = step.forward(config, params, asked, watch=('diagnostics',))
  present = {'layers': asked.weights_BT}
  if config.model.architecture != 'decoder':  # of a source, and where few are targets, all tokens
    stack = count.stacks(config)[0]
    present[stack] = (asked.arguments[0] >= 0).astype(jnp.float32)
  parts = {}
  for group in count.groups(config):
    if not group.d_ff:
      continue
    kept, weights_N = seen['diagnostics'][group.name], present[group.stack].reshape(-1)
    ratio = jax.vmap(functools.partial(_update_ratio, weights_N=weights_N))
    parts[f'{group.name}/update_ratio'] = ratio(kept)
    if not group.experts:  # whose rows are no tokens; of them router/… tells
      own = params['ffn'] if config.ffn.shared else params[group.name]['ffn']
      kind = count.activation(config, group.stack)
      look = jax.vmap(
        lambda kept, own, w=weights_N, kind=kind: _ffn_layer(config, kind, kept, own, w),
        in_axes=(0, None if config.ffn.shared else 0),
      )
      for name, values in look(kept, own).items():
        parts[f'{group.name}/{name}'] = values
  return {f'ffn/{name}': x for name, x in _by_layer(config, parts, jnp.nan).items()}


def _ffn_layer(
  config: Config, activation: str, kept: dict, own: dict, weights_N: jax.Array
) -> dict[str, jax.Array]:
  """One layer's. kept: what Block and FFN keep under 'diagnostics'. own: the FFN's parameters."""

  def mean(x_N: jax.Array) -> jax.Array:
    return jnp.sum(x_N * weights_N) / jnp.sum(weights_N)

  h_NF, inputs = _flat(kept['ffn']['hidden']), [_flat(x) for x in kept['ffn']['inputs']]
  off_NF = h_NF == 0.0
  moved_NF = h_NF - jnp.mean(h_NF, axis=1, keepdims=True)
  square_NF = jnp.square(moved_NF)
  variance_N = jnp.mean(square_NF, axis=1)
  fourth_N = jnp.mean(jnp.square(square_NF), axis=1)
  flat_NF = jnp.abs(_slope(config, activation, inputs, own)) < _FLAT
  narrow = config.model.d_model <= _WIDEST
  matrices = {name: own[name] for name in ('up', 'gate', 'down') if name in own and narrow}
  return {
    'zeros': mean(jnp.mean(off_NF, axis=1)),
    'dead': jnp.mean(jnp.all(off_NF | (weights_N == 0.0)[:, None], axis=0)),
    'kurtosis': mean(fourth_N / jnp.maximum(jnp.square(variance_N), 1e-30)),
    'effective_rank': _participation(h_NF[:_MOST], weights_N[:_MOST]),
    'saturation': mean(jnp.mean(flat_NF, axis=1)),
    **{f'{name}_gram': _gram(w if name != 'down' else w.T) for name, w in matrices.items()},
  }


def _update_ratio(kept: dict, weights_N: jax.Array) -> jax.Array:
  squares = (jnp.mean(jnp.square(_flat(kept[name])), axis=1) for name in ('update', 'stream'))
  update, stream = (jnp.sum(x_N * weights_N) for x_N in squares)
  return jnp.sqrt(update / stream)


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1]).astype(jnp.float32)


def _slope(config: Config, activation: str, inputs: list[jax.Array], own: dict) -> jax.Array:
  """Slope of the activation in its first input, as if the other one were 1."""
  variant = spec.parse('ffn.activation', activation)
  prefix = 'middle_' if config.ffn.hidden_layers > 1 else ''
  if variant.variant == 'product':
    variant, prefix, inputs = variant.parts['gate'], f'{prefix}gate_', inputs[:1]
  leaves = {leaf: own[f'{prefix}{leaf}'] for leaf in variant.leaves}
  ones = [jnp.ones_like(x) for x in inputs[1:]]
  x = inputs[0]
  return jax.jvp(lambda x: activate(variant, [x, *ones], leaves), [x], [jnp.ones_like(x)])[1]


def _participation(h_NF: jax.Array, weights_N: jax.Array) -> jax.Array:
  weights_N1 = weights_N[:, None]
  mean_F = jnp.sum(h_NF * weights_N1, axis=0) / jnp.sum(weights_N)
  moved_NF = (h_NF - mean_F) * weights_N1
  gram = _gram(moved_NF if moved_NF.shape[0] <= moved_NF.shape[1] else moved_NF.T)
  return jnp.square(jnp.trace(gram)) / jnp.sum(jnp.square(gram))


def _gram(x: jax.Array) -> jax.Array:
  """x xᵀ, whose eigenvalues are the squares of the singular values of x."""
  x = x.astype(jnp.float32)
  return jnp.matmul(x, x.T, precision='highest')


def with_spectra(found: dict[str, jax.Array]) -> dict[str, np.ndarray]:
  """What `ffn_statistics` found, on the host, with …_norm and …_effective_rank for each …_gram.

  NumPy's eigenvalues, because several of LAPACK's under way in XLA's few threads on a CPU can wait
  for each other for ever.
  """
  row = {}
  for name, values in jax.device_get(found).items():
    stem, is_gram, _ = name.partition('_gram')
    if not is_gram:
      row[name] = values
      continue
    norm, rank = zip(*map(_spectrum, values), strict=True)
    row |= {f'{stem}_norm': np.array(norm), f'{stem}_effective_rank': np.array(rank)}
  return row


def _spectrum(gram: np.ndarray) -> tuple[float, float]:
  """Largest singular value and effective rank of the matrix that `gram` was made of."""
  if not np.all(np.isfinite(gram)) or not np.any(gram):
    return np.nan, np.nan
  values = np.linalg.eigvalsh(gram.astype(np.float64))
  noise = len(gram) * np.finfo(np.float32).eps * values[-1]
  sigma = np.sqrt(values[values > noise])
  share = sigma / np.sum(sigma)
  return float(sigma[-1]), float(np.exp(-np.sum(share * np.log(share))))


# --- A training step.


def training_statistics(
  config: Config, state: TrainState, batch: step.Batch
) -> dict[str, jax.Array]:
  """Rows diag/… of the step that `state` takes on a batch.

  diag/grad_norm/<parameter>      norm of the gradient, before clipping
  diag/update_ratio/<parameter>   norm of the step / norm of the parameter
  diag/rms/<tensor>               root of the mean square of an activation
  diag/largest_score              of the attention scores that are not masked, in absolute value;
                                  diag/largest_cross_score of those with a source
  """
  seen = examine(config, state, batch)
  row = {f'diag/grad_norm/{name}': _norm(size) for name, size in seen['gradient'].items()}
  for name, size in seen['update'].items():
    row[f'diag/update_ratio/{name}'] = _norm(size) / _norm(seen['weights'][name])
  for name, size in seen['forward'].items():
    if name.endswith('attention/scores'):  # whose mean would be over masked ones as well
      cross = 'cross_' * name.startswith('cross_')
      row[f'diag/largest_{cross}score'] = jnp.where(size['count'] > 0, size['largest'], jnp.nan)
    else:
      row[f'diag/rms/{name}'] = rms(size)
  return row


def examine(config: Config, state: TrainState, batch: step.Batch) -> dict[str, dict[str, Size]]:
  """Stage -> tensor -> its size, of everything in the step that `state` takes on a batch.

  Stages: weights, forward, loss, gradient, gradient norm (over all of it), update (what is added to
  the weights), new weights.
  """
  grads, sums = step.gradient(config, state, batch, lambda x: x)
  rate = optimizer.learning_rate(config, state.step, state.hyper)
  norm = optimizer.global_norm(grads)
  scale = optimizer.clip(norm, state.hyper)
  params, _ = optimizer.update(
    config, grads, scale, state.opt_state, state.params, state.hyper, rate
  )
  single = {'loss': sums['nats'] / jnp.maximum(sums['targets'], 1.0), 'gradient norm': norm}
  update = jax.tree.map(jnp.subtract, params, state.params)
  trees = {'weights': state.params, 'gradient': grads, 'update': update, 'new weights': params}
  found = {stage: _by_layer(config, _sizes(tree), 0.0) for stage, tree in trees.items()}
  found |= {stage: _sizes({stage: x}) for stage, x in single.items()}
  return found | {'forward': _by_layer(config, _observed(config, state, batch), 0.0)}


def _observed(config: Config, state: TrainState, batch: step.Batch) -> dict[str, Size]:
  """Path -> size of what the model observes of itself, noise as in training."""
  key = step.noise_key(state)

  def one(part: step.Batch) -> dict:
    noise_B = step.row_noise(config, key, part)
    asked = objective.example(config, part['tokens'], noise_B)
    return step.forward(config, state.variables, asked, noise_B, watch=('observed',))[1]['observed']

  seen = jax.lax.map(one, step.micro_batches(batch, config.train.accumulate))
  merge = {'largest': jnp.max, 'finite': jnp.all}
  found: dict[str, Size] = {}
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(seen)[0]:
    name, _, what = path_of(key_path).rpartition('/')
    found.setdefault(name, {})[what] = merge.get(what, jnp.sum)(leaf, axis=0)
  return found


def _sizes(tree: dict) -> dict[str, Size]:
  """Path -> size of the leaves of a tree of parameters; one a layer where they are stacked."""

  def one(path: str, x: jax.Array) -> Size:
    layers = axes.stacked(path)
    over = tuple(range(1 if layers else 0, x.ndim))
    entries = jnp.full(x.shape[:1] if layers else (), x.size / (x.shape[0] if layers else 1))
    return {
      'sum_squares': jnp.sum(jnp.square(x), over),
      'sum_abs': jnp.sum(jnp.abs(x), over),
      'largest': jnp.max(jnp.abs(x), over),
      'count': entries,
      'finite': jnp.all(jnp.isfinite(x), over),
    }

  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path_of(p): one(path_of(p), x) for p, x in leaves}


def rms(size: Size) -> jax.Array:
  """Root of the mean square; NaN where there is no tensor."""
  return jnp.sqrt(size['sum_squares'] / size['count'])


def _norm(size: Size) -> jax.Array:
  return jnp.where(size['count'] > 0, jnp.sqrt(size['sum_squares']), jnp.nan)


def _by_layer(config: Config, found: dict, missing: float) -> dict:
  """'layers_3/ffn/up' and its like, over groups of layers -> 'ffn/up' over all layers."""
  groups = {group.name: group for group in count.groups(config)}
  merged: dict = {}
  layers = sum(count.depth(config, stack) for stack in count.stacks(config))
  for path, value in found.items():
    owner, _, name = path.partition('/')
    if owner not in groups:
      merged[path] = value
      continue
    group = groups[owner]

    def place(into: jax.Array, x: jax.Array, group: count.Group = group) -> jax.Array:
      first = group.before + group.first
      return into.at[first : first + group.size].set(x)

    empty = jax.tree.map(lambda x: jnp.full((layers, *x.shape[1:]), missing, x.dtype), value)
    merged[name] = jax.tree.map(place, merged.get(name, empty), value)
  return merged
