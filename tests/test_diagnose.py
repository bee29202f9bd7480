"""Statistics of the FFN and of a training step against NumPy, and over layers of unequal shape."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest

from tests.battery import flat, jiggle, poke, tiny, tokens
from transformer import count, diagnose, model, objective, parallel, state, step
from transformer.config import Config
from transformer.layers import ORDER
from transformer.metrics import spread
from transformer.state import TrainState


def _state(config: Config, noise: float = 0.3) -> TrainState:
  fresh = jax.jit(lambda: state.create(config, np.uint32(0), state.hyper_arrays(config)))()
  return fresh.replace(params=jiggle(fresh.params, noise))


def _batch(config: Config) -> dict:
  rows = np.arange(config.data.batch_size, dtype=np.int32)
  return {'tokens': tokens(config, padding=True), 'rows': rows}


def _ffn(config: Config, params: dict, batch: dict) -> dict[str, float]:
  look = jax.jit(functools.partial(diagnose.ffn_statistics, config))
  row = spread(diagnose.with_spectra(look(params, batch)))
  return {k.removeprefix('ffn/'): v for k, v in row.items()}


def _training(config: Config, current: TrainState, batch: dict) -> dict[str, float]:
  look = jax.jit(functools.partial(diagnose.training_statistics, config))
  row = spread(jax.device_get(look(current, batch)))
  return {k.removeprefix('diag/'): v for k, v in row.items()}


def _kept(config: Config, params: dict, batch: dict) -> tuple[dict, np.ndarray]:
  """What one layer's FFN was given and made of it, (N, F) over tokens that have a target."""
  inputs_BT, _, weights_BT, segments_BT = objective.split(batch['tokens'])
  apply = model.build(config).apply
  _, seen = apply({'params': params}, inputs_BT, segments_BT, mutable=['diagnostics'])
  kept = jax.device_get(seen['diagnostics']['layers'])
  real = np.asarray(weights_BT).reshape(-1) > 0

  def rows(x: np.ndarray) -> np.ndarray:
    return x[0].reshape(-1, x.shape[-1])[real].astype(np.float64)

  return jax.tree.map(rows, kept), real


def _expected(kept: dict, weights: dict, slope) -> dict[str, float]:
  """All statistics of one layer, slowly."""
  h = kept['ffn']['hidden']
  moved = h - h.mean(1, keepdims=True)
  covariance = np.cov(h.T, bias=True)
  eigenvalues = np.linalg.eigvalsh(covariance)
  found = {
    'zeros': (h == 0).mean(),
    'dead': (h == 0).all(0).mean(),
    'kurtosis': ((moved**4).mean(1) / (moved**2).mean(1) ** 2).mean(),
    'effective_rank': eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
    'saturation': (np.abs(slope(kept['ffn']['inputs'][0])) < 0.05).mean(),
    'update_ratio': np.sqrt((kept['update'] ** 2).mean() / (kept['stream'] ** 2).mean()),
  }
  for name in {'up', 'gate', 'down'} & weights.keys():
    sigma = np.linalg.svd(np.asarray(weights[name][0], np.float64), compute_uv=False)
    share = sigma / sigma.sum()
    found[f'{name}_norm'] = sigma.max()
    found[f'{name}_effective_rank'] = np.exp(-(share * np.log(share)).sum())
  return found


def _sigmoid_slope_silu(x: np.ndarray) -> np.ndarray:
  s = 1 / (1 + np.exp(-x))
  return s + x * s * (1 - s)


@pytest.mark.parametrize(
  'activation, slope',
  [('relu', lambda x: (x > 0).astype(float)), ('swiglu', _sigmoid_slope_silu)],
)
def test_ffn_statistics_are_what_numpy_finds(activation: str, slope) -> None:
  config = tiny(**{'ffn.activation': activation, 'model.num_layers': 1})
  params, batch = _state(config).params, _batch(config)
  dead = np.array(params['layers']['ffn']['up'])
  dead[..., 3] = 0.0  # a unit that is off whatever comes
  params = params | {'layers': params['layers'] | {'ffn': params['layers']['ffn'] | {'up': dead}}}
  kept, real = _kept(config, params, batch)
  assert 0 < real.sum() < len(real)  # padding is left out of it
  expected = _expected(kept, params['layers']['ffn'], slope)
  assert expected['dead'] > 0
  found = _ffn(config, params, batch)
  assert found == pytest.approx({f'{k}/0': v for k, v in expected.items()}, rel=2e-4)
  other = _ffn(config, poke(params, 'layers/ffn/up'), batch)
  assert other != pytest.approx(found, rel=2e-4)


def test_a_gaussian_has_kurtosis_3_and_full_rank() -> None:
  """Inputs of a wide identity layer are nearly normal; dimensions of the stream bound its rank."""
  wide = {'ffn.activation': 'identity', 'ffn.d_ff': 4096, 'model.num_layers': 1}
  config = tiny(**wide, **{'data.batch_size': 64})
  found = _ffn(config, _state(config, noise=0.0).params, _batch(config))
  assert found['kurtosis/0'] == pytest.approx(3.0, abs=0.1)
  assert 8 < found['effective_rank/0'] <= 16
  assert 15 < found['up_effective_rank/0'] <= 16
  assert found['saturation/0'] == found['zeros/0'] == found['dead/0'] == 0.0


def test_layers_keep_their_numbers_where_shapes_differ() -> None:
  config = tiny(**{'ffn.ratios': '1,0,2,2', 'model.num_layers': 4})
  assert [g.name for g in count.groups(config)] == ['layers_0', 'layers_1', 'layers_2']
  params, batch = _state(config).params, _batch(config)
  found = _ffn(config, params, batch)
  assert {k.rpartition('/')[2] for k in found} == {'0', '2', '3'}
  last = np.linalg.svd(params['layers_2']['ffn']['up'][1], compute_uv=False).max()
  assert found['up_norm/3'] == pytest.approx(last, rel=1e-4)
  trained = _training(config, _state(config), batch)
  ups = {k for k in trained if k.startswith('grad_norm/ffn/up/')}
  assert ups == {f'grad_norm/ffn/up/{layer}' for layer in (0, 2, 3)}
  assert {f'rms/attention/out/{layer}' for layer in range(4)} <= trained.keys()


@pytest.mark.parametrize(
  'changes',
  [
    {'ffn.shared': True, 'ffn.activation': 'prelu', 'ffn.hidden_layers': 2},
    {'model.num_heads': 0, 'model.positions': 'none'},
    {'model.parallel_branches': True, 'model.norm_placement': 'sandwich', 'model.qk_norm': True},
    {'model.norm_placement': 'post', 'model.bias': True, 'ffn.bias': True},
    {'model.dtype': 'bfloat16', 'model.tied': False, 'model.positions': 'learned'},
  ],
  ids=str,
)
def test_every_shape_of_model_has_rows(changes: dict) -> None:
  config = tiny(**changes)
  current, batch = _state(config, noise=0.05), _batch(config)
  found = _ffn(config, current.params, batch)
  assert {f'{n}/{i}' for n in ('zeros', 'kurtosis', 'up_norm') for i in (0, 1)} <= found.keys()
  trained = _training(config, current, batch)
  assert ('largest_score/1' in trained) == bool(config.model.num_heads)
  for key in trained:
    kind, _, name = key.partition('/')
    name = re.sub(r'/\d+$', '', name).rpartition('/')[2]
    assert kind != 'rms' or name in ORDER, key


def test_training_statistics_are_of_the_very_step() -> None:
  """Gradient and update agree with what the step does; noise and micro-batches are its own."""
  config = tiny(**{'model.dropout': 0.2, 'train.accumulate': 2, 'optim.learning_rate': 0.1})
  current, batch = _state(config), _batch(config)
  found = _training(config, current, batch)
  moved, metrics = jax.jit(lambda s, b: step.train_step(config, s, b, lambda x: x))(current, batch)
  norms = [v for k, v in found.items() if k.startswith('grad_norm/')]
  reported = float(metrics['train/grad_norm'][0])
  assert np.sqrt(np.square(norms).sum()) == pytest.approx(reported, rel=1e-5)
  before, after = flat(current.params), flat(moved.params)
  for path, old in before.items():
    if path.startswith('layers/'):
      for layer in range(2):
        change = np.linalg.norm(after[path][layer] - old[layer]) / np.linalg.norm(old[layer])
        key = f'update_ratio/{path.removeprefix("layers/")}/{layer}'
        assert found[key] == pytest.approx(change, rel=1e-3), key
  without = tiny(**{'train.accumulate': 2, 'optim.learning_rate': 0.1})
  assert _training(without, current, batch)['rms/logits'] != found['rms/logits']
  whole = tiny(**{'model.dropout': 0.2, 'optim.learning_rate': 0.1})  # noise belongs to rows
  assert _training(whole, current, batch) == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize(
  'layout',
  [{'parallel.mode': 'pmap', 'parallel.mesh': ''}, {'parallel.mesh': 'data:2,fsdp:2,tensor:2'}],
  ids=str,
)
def test_executors_agree_with_one_device(layout: dict) -> None:
  config, alone = tiny(**layout), tiny()
  current, batch = _state(alone), _batch(alone)
  for function, tree, host in (
    (diagnose.ffn_statistics, current.params, diagnose.with_spectra),
    (diagnose.training_statistics, current, jax.device_get),
  ):
    expected = spread(host(jax.jit(functools.partial(function, alone))(tree, batch)))
    executor = parallel.make(config)
    create = executor.compile_init(lambda: jax.tree.map(jax.numpy.asarray, current))
    placed = create()
    placed = placed if tree is current else placed.params
    look = executor.compile_whole(functools.partial(function, config))
    found = spread(host(look(placed, batch)))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
