"""Statistics of the FFN and of a training step against NumPy, and over layers of unequal shape."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest

from tests.battery import flat, jiggle, poke, rows, tiny
from transformer import count, diagnose, model, objective, parallel, replay, state, step
from transformer.config import Config
from transformer.layers import ORDER, order_name
from transformer.metrics import spread
from transformer.state import TrainState


def _state(config: Config, noise: float = 0.3) -> TrainState:
  fresh = jax.jit(lambda: state.create(config, np.uint32(0), state.hyper_arrays(config)))()
  return fresh.replace(params=jiggle(fresh.params, noise))


def _batch(config: Config) -> dict:
  numbers = np.arange(config.data.batch_size, dtype=np.int32)
  return {'tokens': rows(config, padding=True), 'rows': numbers}


def _ffn(config: Config, params: dict, batch: dict) -> dict[str, float]:
  look = jax.jit(functools.partial(diagnose.ffn_statistics, config))
  row = spread(diagnose.with_spectra(look(params, batch)))
  return {k.removeprefix('ffn/'): v for k, v in row.items()}


def _training(config: Config, current: TrainState, batch: dict) -> dict[str, float]:
  look = jax.jit(functools.partial(diagnose.training_statistics, config))
  row = spread(jax.device_get(look(current, batch)))
  return {k.removeprefix('diag/'): v for k, v in row.items()}


def _kept(
  config: Config, params: dict, batch: dict, stack: str = 'layers', layer: int = 0
) -> tuple[dict, np.ndarray]:
  """What one layer's FFN was given and made of it, (N, F), and which tokens it is about.

  Of a decoder those that have a target, else all that are there.
  """
  asked = objective.example(config, batch['tokens'])
  apply = model.build(config).apply
  _, seen = apply({'params': params}, *asked.arguments, mutable=['diagnostics'])
  kept = jax.device_get(seen['diagnostics'][stack])
  if 'experts' in kept['ffn']:
    del kept['ffn']  # whose rows are no tokens
  real = np.asarray(asked.weights_BT) > 0
  if stack == 'encoder_layers' or config.model.architecture == 'encoder':
    real = np.asarray(asked.arguments[0]) >= 0

  def rows_of(x: np.ndarray) -> np.ndarray:
    return x[layer].reshape(-1, x.shape[-1])[real.reshape(-1)].astype(np.float64)

  return jax.tree.map(rows_of, kept), real


def _expected(kept: dict, weights: dict, slope, layer: int = 0) -> dict[str, float]:
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
    sigma = np.linalg.svd(np.asarray(weights[name][layer], np.float64), compute_uv=False)
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
  assert 0 < real.sum() < real.size  # padding is left out of it
  expected = _expected(kept, params['layers']['ffn'], slope)
  assert expected['dead'] > 0
  found = _ffn(config, params, batch)
  assert found == pytest.approx({f'{k}/0': v for k, v in expected.items()}, rel=2e-4)
  other = _ffn(config, poke(params, 'layers/ffn/up'), batch)
  assert other != pytest.approx(found, rel=2e-4)


def _relu_slope(x: np.ndarray) -> np.ndarray:
  return (x > 0).astype(float)


SOURCE = {
  'model.architecture': 'encoder_decoder',
  'model.num_encoder_layers': 1,
  'ffn.activation': 'swiglu',
  'ffn.encoder_activation': 'relu',
  'data.source_len': 6,
}


def test_an_encoder_s_layers_come_before_its_decoder_s() -> None:
  """Each over the tokens of its own side, with the slope of its own activation."""
  config = tiny(**SOURCE)
  params, batch = _state(config).params, _batch(config)
  found, expected = _ffn(config, params, batch), {}
  for number, (stack, layer, slope) in enumerate(
    [
      ('encoder_layers', 0, _relu_slope),
      ('layers', 0, _sigmoid_slope_silu),
      ('layers', 1, _sigmoid_slope_silu),
    ]
  ):
    kept, real = _kept(config, params, batch, stack, layer)
    assert real.shape[1] == (6 if stack == 'encoder_layers' else 8)
    assert 0 < real.sum() < real.size
    row = _expected(kept, params[stack]['ffn'], slope, layer)
    expected |= {f'{name}/{number}': value for name, value in row.items()}
  assert found == pytest.approx(expected, rel=2e-4)
  assert 'gate_norm/0' not in found and 'gate_norm/1' in found
  other = _ffn(config, poke(params, 'encoder_layers/ffn/up'), batch)
  for name in ('kurtosis', 'update_ratio'):
    assert all(other[f'{name}/{i}'] != found[f'{name}/{i}'] for i in (0, 1, 2))


def test_of_an_encoder_all_tokens_count_though_few_have_a_target() -> None:
  config = tiny(
    **{'model.architecture': 'encoder', 'model.num_layers': 1, 'ffn.activation': 'relu'}
  )
  params, batch = _state(config).params, _batch(config)
  kept, real = _kept(config, params, batch)
  chosen = np.asarray(objective.example(config, batch['tokens']).weights_BT) > 0
  assert chosen.sum() < real.sum() < real.size
  expected = _expected(kept, params['layers']['ffn'], _relu_slope)
  expected = {f'{name}/0': value for name, value in expected.items()}
  assert _ffn(config, params, batch) == pytest.approx(expected, rel=2e-4)


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
    {'model.architecture': 'encoder', 'model.head': 'transform', 'model.token_types': 2},
    pytest.param(
      SOURCE | {'model.norm_placement': 'sandwich', 'model.qk_norm': True},
      marks=pytest.mark.exhaustive,
    ),
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
    name = order_name(re.sub(r'/\d+$', '', name))
    assert kind != 'rms' or (name in ORDER and name.rpartition('/')[2] != 'scores'), key
  cross = {key for key in trained if key.startswith('largest_cross_score')}
  both = config.model.architecture == 'encoder_decoder'
  assert cross == ({'largest_cross_score/1', 'largest_cross_score/2'} if both else set())


@pytest.mark.exhaustive
def test_of_experts_there_is_what_they_add_and_what_trains_them() -> None:
  """A router's bias is read where it is kept; a dense layer beside them keeps its rows."""
  config = tiny(**{'moe.experts': 3, 'moe.router': 'bias', 'moe.layers': '1'})
  current, batch = _state(config), _batch(config)
  found = _ffn(config, current.variables, batch)
  assert {key for key in found if key.endswith('/1')} == {'update_ratio/1'} and 'zeros/0' in found
  kept, _ = _kept(config, current.variables, batch, stack='layers_1')
  ratio = np.sqrt((kept['update'] ** 2).mean() / (kept['stream'] ** 2).mean())
  assert found['update_ratio/1'] == pytest.approx(ratio, rel=1e-4)
  trained = _training(config, current, batch)
  wanted = {f'grad_norm/ffn/{name}/1' for name in ('router', 'experts/up', 'experts/down')}
  assert wanted <= trained.keys() and all(trained[key] > 0 for key in wanted)


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_replay_goes_through_a_source_first() -> None:
  """The order of the tensors of a step: encoder, its norm, decoder; gradients the other way."""
  config = tiny(**SOURCE)
  look = jax.jit(functools.partial(diagnose.examine, config))
  found = replay._in_order(config, jax.device_get(look(_state(config), _batch(config))))
  assert all(tensor.finite for tensor in found)
  by_stage: dict[str, list] = {}
  for tensor in found:
    by_stage.setdefault(tensor.stage, []).append((tensor.layer, tensor.name))
  assert list(by_stage) == list(replay.STAGES)
  forward, gradient = by_stage['forward'], by_stage['gradient']
  for where, earlier in (
    (forward, [(None, 'source_embedding'), (0, 'attention/query'), (0, 'stream_ffn'),
               (None, 'encoder_normed'), (1, 'attention_normed'), (1, 'attention/out'),
               (1, 'stream_attention'), (1, 'cross_attention_normed'), (1, 'cross_attention/query'),
               (1, 'cross_attention/scores'), (1, 'cross_attention/out'),
               (1, 'stream_cross_attention'), (1, 'ffn_normed'), (1, 'ffn/gate'),
               (1, 'ffn/down'), (2, 'attention/query'), (2, 'stream_ffn'),
               (None, 'final_normed'), (None, 'logits')]),
    (gradient[::-1], [(None, 'embed/table'), (0, 'attention/query'), (0, 'ffn/down'),
                      (None, 'encoder_norm/scale'), (1, 'attention/query'), (1, 'attention/out'),
                      (1, 'cross_attention_norm/scale'), (1, 'cross_attention/query'),
                      (1, 'cross_attention/out'), (1, 'ffn/up'), (2, 'ffn/down'),
                      (None, 'final_norm/scale')]),
  ):  # fmt: skip
    places = [where.index(one) for one in earlier]
    assert places == sorted(places), [where[place] for place in sorted(places)]
