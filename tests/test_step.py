"""One training step: its gradient, its sums, what it does with bad numbers, what it shares."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference, reference_optimizer
from transformer import axes, params, state, step
from transformer.config import Config, static_key
from transformer.ops import attention, backend, cross_entropy, product
from transformer.state import TrainState

CREATORS: dict = {}  # static key -> compiled state.create


@functools.cache
def compiled(config: Config):
  """(state, batch) -> (state, metrics), on one device."""
  return jax.jit(lambda s, b: step.train_step(config, s, b, lambda x: x))


def create(config: Config) -> TrainState:
  make = CREATORS.setdefault(static_key(config), jax.jit(functools.partial(state.create, config)))
  return make(np.uint32(config.seed), state.hyper_arrays(config))


def batch_of(config: Config, seed: int = 0, padding: bool = True) -> dict:
  rows = np.arange(config.data.batch_size, dtype=np.int32)
  return {'tokens': battery.tokens(config, seed, padding), 'rows': rows}


def train(config: Config, steps: int = 3, by: Config | None = None) -> tuple[TrainState, list]:
  """Steps from the start with the program of `by`, else the config's own."""
  current, rows = create(config), []
  for i in range(steps):
    current, metrics = compiled(by or config)(current, batch_of(config, i))
    rows.append(jax.device_get(metrics))
  return jax.device_get(current), rows


def oracle_loss(config: Config, weights: dict, tokens: np.ndarray) -> tuple[float, int]:
  """(Σ nats, targets) of a batch, row by row in NumPy."""
  total, count = 0.0, 0
  for row in tokens:
    segments = np.cumsum(row[:-1] == 0)
    logits = reference.decoder(config, weights, np.maximum(row[:-1], 0), segments)
    nats, targets = reference.cross_entropy(logits, row[1:])
    total, count = total + nats, count + targets
  return total, count


def oracle_objective(config: Config, weights: dict, tokens: np.ndarray) -> float:
  """What a step minimises: the mean over targets, in NumPy."""
  total, count = 0.0, 0
  for row in tokens:
    segments = np.cumsum(row[:-1] == 0)
    logits = reference.decoder(config, weights, np.maximum(row[:-1], 0), segments)
    total += reference.objective(logits, row[1:], config.loss.label_smoothing, config.loss.z_loss)
    count += np.sum(row[1:] >= 0)
  return total / count


def gradient(config: Config, current: TrainState, batch: dict) -> dict[str, np.ndarray]:
  """Of the mean over all targets, without dropout."""
  loss = lambda p: step.loss_sums(config, p, current.hyper, batch['tokens'], None)  # noqa: E731
  grads, sums = jax.jit(jax.grad(loss, has_aux=True))(current.params)
  return {path: np.float64(g) / float(sums['targets']) for path, g in battery.flat(grads).items()}


class TestOneStep:
  config = battery.tiny(
    **{'optim.clip_norm': 0.3, 'optim.learning_rate': 0.02, 'ffn.activation': 'swiglu'}
  )

  def test_loss_is_a_sum_over_targets_and_their_count(self):
    current, batch = create(self.config), batch_of(self.config)
    _, metrics = compiled(self.config)(current, batch)
    total, count = oracle_loss(self.config, jax.device_get(current.params), batch['tokens'])
    assert metrics['train/loss'].tolist() == pytest.approx([total, count], rel=1e-5)
    assert count == 8 + 3 + 1 + 3 * 8

  def test_gradient_against_finite_differences_of_the_numpy_model(self):
    """Along one random direction through all parameters at once."""
    current, batch = create(self.config), batch_of(self.config)
    grads = gradient(self.config, current, batch)
    rng = np.random.default_rng(0)
    weights = jax.device_get(current.params)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), weights)

    def mean(amount: float) -> float:
      moved = jax.tree.map(lambda w, d: np.float64(w) + amount * d, weights, direction)
      total, count = oracle_loss(self.config, moved, batch['tokens'])
      return total / count

    slope = sum(np.sum(grads[path] * d) for path, d in battery.flat(direction).items())
    assert slope == pytest.approx((mean(1e-5) - mean(-1e-5)) / 2e-5, rel=1e-4)

  @pytest.mark.parametrize('label_smoothing', [0.0, 0.2])
  def test_what_is_minimised_may_be_more_than_what_is_reported(self, label_smoothing):
    """Smoothing and z-loss are in the gradient; train/loss and evaluation stay cross-entropy."""
    config = self.config.replace(**{'loss.label_smoothing': label_smoothing, 'loss.z_loss': 0.05})
    current, batch = create(config), batch_of(config)
    weights = jax.device_get(current.params)
    table = weights['embed']['table']
    direction = np.random.default_rng(0).normal(size=table.shape)
    grads = gradient(config, current, batch)

    def mean(amount: float) -> float:
      moved = weights | {'embed': {'table': table + amount * direction}}
      return oracle_objective(config, moved, batch['tokens'])

    slope = np.sum(grads['embed/table'] * direction)
    assert slope == pytest.approx((mean(1e-5) - mean(-1e-5)) / 2e-5, rel=1e-4)
    _, metrics = compiled(config)(current, batch)
    plain = oracle_loss(config, weights, batch['tokens'])
    assert metrics['train/loss'].tolist() == pytest.approx(list(plain), rel=1e-5)
    held_out = step.eval_step(config, current.params, batch, lambda x: x)
    assert pair(held_out) == pytest.approx(list(plain), rel=1e-5)
    assert abs(mean(0) - plain[0] / plain[1]) > 0.1  # negative control

  def test_update_against_the_paper(self):
    """Clip, AdamW on matrices with decay, first of eight steps: 1 of warm-up, rate at its peak."""
    before, batch = create(self.config), batch_of(self.config)
    after, metrics = compiled(self.config)(before, batch)
    grads = gradient(self.config, before, batch)
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    assert norm > 0.3 and float(metrics['train/grad_norm'][0]) == pytest.approx(norm, rel=1e-5)
    assert float(metrics['train/learning_rate'][0]) == pytest.approx(0.02)
    old, new = battery.flat(before.params), battery.flat(after.params)
    clipped = reference_optimizer.clip(grads, 0.3)
    for path, value in old.items():
      decay = 0.1 if axes.param(path).decay else 0.0
      expected, _ = reference_optimizer.adamw(
        np.float64(value), clipped[path], (0.0, 0.0), 1, 0.02, 0.9, 0.95, 1e-8, decay
      )
      # A first step of Adam is the gradient's sign: where the gradient is below 1e-6, rounding
      # and eps decide it.
      clear = np.abs(clipped[path]) > 1e-6
      assert np.mean(clear) > 0.3, path
      np.testing.assert_allclose(new[path][clear], expected[clear], atol=2e-5, err_msg=path)
      if path == 'embed/table':  # negative control: decay everywhere, or nowhere
        assert np.max(np.abs(expected + 0.02 * decay * value - new[path])[clear]) > 1e-4
    assert int(after.step) == 1

  def test_padding_is_not_there(self):
    """What stands behind the −1 of a row, or how many rows of −1 follow, changes nothing."""
    current, batch = create(self.config), batch_of(self.config)
    _, one = compiled(self.config)(current, batch)
    moved = batch | {'tokens': np.roll(batch['tokens'], 3, axis=0)}
    _, other = compiled(self.config)(current, moved)
    assert other['train/loss'].tolist() == pytest.approx(one['train/loss'].tolist(), rel=1e-6)
    np.testing.assert_allclose(other['train/grad_norm'], one['train/grad_norm'], rtol=1e-5)

  def test_a_batch_of_padding_alone_is_no_disaster(self):
    current, batch = create(self.config), batch_of(self.config)
    after, metrics = compiled(self.config)(
      current, batch | {'tokens': np.full_like(batch['tokens'], -1)}
    )
    assert metrics['train/loss'].tolist() == [0, 0]
    assert all(np.all(np.isfinite(x)) for x in battery.flat(after.params).values())


ACCUMULATED = {  # eps keeps Adam from turning the rounding of a gradient near 0 into a step
  'model.dropout': 0.2,
  'optim.name': 'adamw(eps=1e-4)',
  'optim.learning_rate': 0.01,
}


class TestAccumulation:
  """Micro-batches hold 1 to 16 targets here; each row has its own noise in every cut."""

  @pytest.mark.parametrize('parts', [2, 4])
  def test_agrees_with_the_whole_batch(self, parts):
    whole = train(battery.tiny(**ACCUMULATED))
    got, rows = train(battery.tiny(**ACCUMULATED, **{'train.accumulate': parts}))
    assert battery.largest_difference(got.params, whole[0].params) < 1e-5
    for one, other in zip(rows, whole[1], strict=True):
      np.testing.assert_allclose(one['train/loss'], other['train/loss'], rtol=1e-6)
      np.testing.assert_allclose(one['train/grad_norm'], other['train/grad_norm'], rtol=1e-5)

  def test_a_mean_of_means_would_be_seen(self):
    """Negative control: the mean over micro-batches of their means is another number."""
    config = battery.tiny()
    current, tokens = create(config), batch_of(config)['tokens']
    sums = [oracle_loss(config, jax.device_get(current.params), tokens[i::4]) for i in range(4)]
    right = sum(t for t, _ in sums) / sum(n for _, n in sums)
    wrong = np.mean([t / n for t, n in sums])
    assert abs(wrong - right) > 1e-3


class TestNonFinite:
  config = battery.tiny(**{'ffn.activation': 'swiglu'})

  def step(self, current: TrainState, seed: int = 0):
    return compiled(self.config)(current, batch_of(self.config, seed))

  def break_it(self, current: TrainState, value: float) -> TrainState:
    params = jax.device_get(current.params)
    return current.replace(params=battery.poke(params, 'final_norm/scale', value))

  @pytest.mark.parametrize('value', [np.nan, np.inf, 3e38])
  def test_changes_nothing_but_the_counters(self, value):
    good, _ = self.step(create(self.config))
    broken = self.break_it(good, value)
    after, metrics = self.step(broken, 1)
    assert battery.same_bits(after.params, broken.params)
    assert battery.same_bits(after.opt_state, broken.opt_state)
    assert (int(after.step), int(after.bad_steps), int(after.skipped)) == (2, 1, 1)
    assert metrics['train/loss'].tolist() == [0, 0]  # not counted into any mean
    assert metrics['train/grad_norm'].tolist() == [0, 0]
    assert metrics['train/skipped_steps'].tolist() == [1, 1]
    assert metrics['bad'][0] == 1 and not np.isfinite(metrics['bad'][1])

  def test_counts_in_a_row_and_in_all(self):
    good, metrics = self.step(create(self.config))
    assert (int(good.bad_steps), int(good.skipped)) == (0, 0)
    assert metrics['train/skipped_steps'].tolist() == [0, 1]
    once, _ = self.step(self.break_it(good, np.nan), 1)
    twice, _ = self.step(once, 2)
    assert (int(twice.bad_steps), int(twice.skipped)) == (2, 2)
    healed, metrics = self.step(twice.replace(params=good.params), 3)
    assert (int(healed.bad_steps), int(healed.skipped), int(healed.step)) == (0, 2, 4)
    assert metrics['bad'][0] == 0 and metrics['train/loss'][1] > 0
    # what it learns is what it would have learnt at this step without the bad ones
    expected, _ = self.step(good.replace(step=twice.step), 3)
    assert battery.same_bits(healed.params, expected.params)


TRACED = [
  {'optim.learning_rate': 0.1},
  {'optim.weight_decay': 0.0},
  {'optim.name': 'adamw(b1=0.5, b2=0.99, eps=1e-3)'},
  {'optim.schedule': 'cosine(warmup=0.9, final=0.5)'},
  {'optim.clip_norm': 0.01},
  {'loss.z_loss': 0.1},
  {'train.steps': 50},
  {'seed': 5},
]
EVERYTHING = {k: v for changes in TRACED for k, v in changes.items()}


@pytest.mark.parametrize('changes', [*TRACED, EVERYTHING], ids=lambda c: ' '.join(c)[:40])
def test_traced_settings_share_one_program_and_have_their_effect(changes):
  base, config = battery.tiny(), battery.tiny(**changes)
  assert static_key(base) == static_key(config)
  plain, _ = train(base)
  with battery.compilations() as seconds:
    got, _ = train(config, by=base)
  assert seconds == []
  assert compiled(base)._cache_size() == 1
  assert battery.largest_difference(plain.params, got.params) > 1e-5
  if changes == EVERYTHING:
    alone, _ = train(config)
    assert battery.same_bits(got.params, alone.params)


@pytest.mark.parametrize('changes', [{}, {'model.dropout': 0.3}], ids=['plain', 'dropout'])
def test_training_repeats_to_the_bit(changes):
  config = battery.tiny(**changes)
  one, other = train(config)[0], train(config)[0]
  assert battery.same_bits(one, other)


def test_noise_is_of_the_seed_the_step_and_the_row():
  config = battery.tiny(**{'model.dropout': 0.3})
  current, batch = create(config), batch_of(config, padding=False)

  def loss(current: TrainState, batch: dict) -> float:
    return float(compiled(config)(current, batch)[1]['train/loss'][0])

  here = loss(current, batch)
  assert loss(current, batch) == here
  assert loss(current.replace(step=current.step + 1), batch) != here
  assert loss(current.replace(key=current.key + 1), batch) != here
  assert loss(current, batch | {'rows': batch['rows'] + 8}) != here
  moved = {name: x[::-1].copy() for name, x in batch.items()}  # rows move with their noise
  assert loss(current, moved) == pytest.approx(here, rel=1e-6)


def test_loss_falls():
  config = battery.tiny(**{'train.steps': 30, 'optim.learning_rate': 0.02})
  current, batch, losses = create(config), batch_of(config), []
  for _ in range(30):
    current, metrics = compiled(battery.tiny())(current, batch)
    losses.append(float(metrics['train/loss'][0] / metrics['train/loss'][1]))
  assert losses[0] == pytest.approx(np.log(32), abs=1)  # a guess among 32 tokens, about
  assert losses[-1] < losses[0] / 2


def test_bfloat16_keeps_master_weights_and_moments_in_float32():
  low = battery.tiny(**{'model.dtype': 'bfloat16'})
  got, rows = train(low)
  exact, expected = train(battery.tiny())
  for path, leaf in battery.flat(got).items():
    assert leaf.dtype in (np.float32, np.int32, np.uint32), path
  assert battery.flat(got.params).keys() == battery.flat(exact.params).keys()
  for one, other in zip(rows, expected, strict=True):
    np.testing.assert_allclose(one['train/loss'], other['train/loss'], rtol=0.01)
    assert one['train/loss'][0] != other['train/loss'][0]


def test_eval_step_sums_and_evaluates():
  """Sums add up over batches, padding apart, and dropout is off."""
  config = battery.tiny(**{'model.dropout': 0.5})
  weights = jax.device_get(create(config).params)
  evaluate = jax.jit(lambda p, b: step.eval_step(config, p, b, lambda x: x))
  got = evaluate(weights, batch_of(config))
  assert got['nats'].dtype == np.float32 and got['routed'] == {}
  expected = oracle_loss(config, weights, batch_of(config)['tokens'])
  assert pair(got) == pytest.approx(list(expected), rel=1e-5)
  halves = [batch_of(config), batch_of(config)]
  halves[0]['tokens'][4:], halves[1]['tokens'][:4] = -1, -1
  both = jax.tree.map(np.add, *(evaluate(weights, b) for b in halves))
  assert pair(both) == pytest.approx(pair(got), rel=1e-6)
  poked = evaluate(battery.poke(weights, 'layers/ffn/down'), batch_of(config))
  assert abs(pair(poked)[0] - expected[0]) > 1e-3  # negative control


def pair(sums: dict) -> list[float]:
  return [float(sums['nats']), float(sums['targets'])]


def test_extra_losses_are_weighed_by_targets(monkeypatch):
  """A loss of a row counts for each of its targets, times its weight, and layers add up."""
  from transformer import ffn

  config = battery.tiny()
  current, tokens = create(config), batch_of(config)['tokens']
  hyper = {**current.hyper, 'moe.extra_loss': 0.1}
  plain, sums = step.loss_sums(config, current.params, hyper, tokens, None)
  nats = sums['nats']
  assert plain == nats
  original = ffn.FFN.__call__

  def with_loss(self, x, noise_B=None):
    y, _ = original(self, x, noise_B)
    return y, ffn.Aux({'extra': jnp.arange(8.0)}, {})

  monkeypatch.setattr(ffn.FFN, '__call__', with_loss)
  total, again = step.loss_sums(config, current.params, hyper, tokens, None)
  assert again['nats'] == pytest.approx(float(nats))
  targets_B = np.sum(np.asarray(tokens)[:, 1:] >= 0, axis=1)
  extra = 2 * np.sum(np.arange(8) * targets_B)  # of two layers
  assert again['extra'] == pytest.approx(extra)
  assert total == pytest.approx(float(nats + 0.1 * extra))


@pytest.mark.exhaustive
def test_the_embedding_gradient_of_a_frequent_token_survives_bfloat16():
  """One token 20,480 times in a batch: summed up in bfloat16 its gradient is lost."""
  settings = {'model.d_model': 16, 'data.batch_size': 40, 'data.seq_len': 512}
  grads = {}
  for dtype in ('float32', 'bfloat16'):
    config = battery.tiny(**settings | {'model.dtype': dtype, 'model.num_layers': 1})
    weights = jax.jit(functools.partial(params.initialize, config))(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(1, 32, (40, 513)).astype(np.int32)
    tokens[:, :-1] = np.where(tokens[:, :-1] % 8, 5, tokens[:, :-1])  # 7 of 8 inputs are token 5
    hyper = state.hyper_arrays(config)
    loss = functools.partial(step.loss_sums, config, hyper=hyper, tokens=tokens, noise_B=None)
    grad = jax.jit(jax.grad(lambda p, loss=loss: loss(p)[0]))(weights)
    grads[dtype] = np.asarray(grad['embed']['table'][5], np.float64)
  error = np.linalg.norm(grads['bfloat16'] - grads['float32']) / np.linalg.norm(grads['float32'])
  assert error < 0.05


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_ways_of_a_lone_cpu_are_the_plain_ones(dtype, monkeypatch):
  """Products, attention in blocks and the loss without logits, all at once, in a whole step.

  At these sizes they are not taken unless told; in bfloat16 the plain way rounds more often.
  """
  changes = {'ffn.activation': 'swiglu', 'loss.z_loss': 0.01, 'data.seq_len': 16}
  exact = battery.tiny(**changes)
  config = battery.tiny(**changes, **{'model.dtype': dtype})
  current, batch = create(exact), {k: jnp.asarray(v) for k, v in batch_of(exact).items()}
  plain = gradient(exact, current, batch)
  for module in (attention, backend, cross_entropy, product):
    monkeypatch.setattr(module, '_LEAST', 0)
  found = gradient(config, current, batch)
  rough = 1e-5 if dtype == 'float32' else 0.04
  for path, right in plain.items():
    size = np.max(np.abs(right))
    np.testing.assert_allclose(found[path], right, rtol=0, atol=rough * size, err_msg=path)
  text = str(
    jax.make_jaxpr(lambda p: step.loss_sums(config, p, current.hyper, batch['tokens'], None)[0])(
      current.params
    )
  )
  assert text.count('custom_vjp_call') > 8  # they were taken
