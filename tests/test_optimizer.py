"""The optimizer against the paper's algorithm, and the schedule at points worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference
from transformer import axes, optimizer
from transformer.config import Config
from transformer.state import hyper_arrays

RNG = np.random.default_rng(0)
PARAMS = {
  'embed': {'table': RNG.normal(size=(5, 4))},
  'final_norm': {'scale': RNG.normal(size=4)},
  'layers': {'ffn': {'up': RNG.normal(size=(2, 4, 3)), 'up_bias': RNG.normal(size=(2, 3))}},
}
PARAMS = jax.tree.map(np.float32, PARAMS)
STEPS = 6
GRADS = [
  jax.tree.map(lambda x, s=s: np.float32(s * RNG.normal(size=x.shape)), PARAMS)
  for s in (0.05, 3.0, 0.02, 1.0, 0.1, 7.0)  # norms on both sides of the largest allowed, 1
]


def shares(steps: int, schedule: str, at: list[int]) -> list[float]:
  config = battery.tiny(
    **{'train.steps': steps, 'optim.schedule': schedule, 'optim.learning_rate': 0.5}
  )
  rates = [optimizer.learning_rate(config, jnp.int32(s), hyper_arrays(config)) for s in at]
  return [float(rate) / 0.5 for rate in rates]


def test_cosine_by_hand():
  """20 steps, .2 of them warm-up: 4 steps at ¼, ½, ¾, 1; then 16 of half a cosine to .1.

  Halfway, at step 12: .1 + .9 · ½ = .55. A quarter, step 8: .1 + .9 · ½ (1 + cos 45°) = .8682.
  """
  got = shares(20, 'cosine(warmup=0.2, final=0.1)', [0, 1, 2, 3, 4, 8, 12, 20, 30])
  assert got == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.868198, 0.55, 0.1, 0.1], rel=1e-6)


def test_cosine_at_its_ends():
  assert shares(10, 'cosine(warmup=0, final=0)', [0, 5, 10]) == pytest.approx([1, 0.5, 0], abs=1e-7)
  assert shares(4, 'cosine(warmup=1)', [0, 1, 2, 3]) == pytest.approx([0.25, 0.5, 0.75, 1])
  assert shares(1, 'cosine', [0]) == pytest.approx([1])
  assert shares(10, 'cosine(final=1)', [1, 5, 9]) == pytest.approx([1, 1, 1])


def test_cosine_rises_then_falls_and_wastes_no_step():
  got = np.array(shares(50, 'cosine', list(range(50))))
  assert np.all(got > 0) and np.argmax(got) in (4, 5)
  assert np.all(np.diff(got[:5]) > 0) and np.all(np.diff(got[5:]) < 0)


SETTINGS = {
  'optim.name': 'adamw(b1=0.8, b2=0.9, eps=1e-3)',
  'optim.weight_decay': 0.3,
  'optim.learning_rate': 0.05,
  'optim.clip_norm': 1.0,
  'optim.schedule': 'cosine(warmup=0.5)',
  'train.steps': STEPS,
}


def run(config: Config, hypers: dict) -> tuple[dict, list[float]]:
  params, norms = jax.tree.map(jnp.asarray, PARAMS), []
  opt_state = optimizer.init(config, params, hypers)
  update = jax.jit(lambda *a: optimizer.update(config, *a))
  for i, grads in enumerate(GRADS):
    rate = optimizer.learning_rate(config, jnp.int32(i), hypers)
    params, opt_state, norm = update(grads, opt_state, params, hypers, rate)
    norms.append(float(norm))
  return battery.flat(params), norms


def oracle(decay_everything=False, clip_norm=1.0, decay=0.3, b2=0.9) -> dict[str, np.ndarray]:
  """Six steps of the paper's algorithm on each array; rates 1/3, 2/3, 1, then half a cosine."""
  values = {path: np.float64(x) for path, x in battery.flat(PARAMS).items()}
  moments = dict.fromkeys(values, (0.0, 0.0))
  shares = [1 / 3, 2 / 3, 1, 1, *(0.1 + 0.45 * (1 + np.cos(np.pi * d / 3)) for d in (1, 2))]
  for i, grads in enumerate(GRADS):
    grads = reference.clip({k: np.float64(g) for k, g in battery.flat(grads).items()}, clip_norm)
    for path in values:
      decays = decay_everything or axes.param(path).decay
      values[path], moments[path] = reference.adamw(
        values[path], grads[path], moments[path], i + 1, 0.05 * shares[i],
        b1=0.8, b2=b2, eps=1e-3, decay=decay if decays else 0.0,
      )  # fmt: skip
  return values


def off(got: dict, expected: dict) -> float:
  return max(np.max(np.abs(got[path] - expected[path])) for path in expected)


def test_adamw_against_the_paper():
  config = battery.tiny(**SETTINGS)
  got, norms = run(config, hyper_arrays(config))
  assert off(got, oracle()) < 2e-6
  for wrong in (
    oracle(decay_everything=True),
    oracle(clip_norm=2.0),
    oracle(decay=0.31),
    oracle(b2=0.901),
  ):
    assert off(got, wrong) > 1e-5  # negative controls
  expected = [
    np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in battery.flat(grads).values()))
    for grads in GRADS
  ]
  assert norms == pytest.approx(expected)  # before clipping


def test_the_first_step_by_hand():
  """Moments cancel their bias: the first step is rate · (sign(g) + decay · value), eps aside."""
  config = battery.tiny(
    **SETTINGS | {'optim.name': 'adamw(eps=0)', 'optim.schedule': 'cosine(warmup=0)'}
  )
  hypers = hyper_arrays(config)
  opt_state = optimizer.init(config, PARAMS, hypers)
  new, _, _ = optimizer.update(config, GRADS[0], opt_state, PARAMS, hypers, jnp.float32(0.5))
  table, grad = PARAMS['embed']['table'], GRADS[0]['embed']['table']
  expected = table - 0.5 * (np.sign(grad) + 0.3 * table)
  np.testing.assert_allclose(new['embed']['table'], expected, atol=1e-6)
  scale, grad = PARAMS['final_norm']['scale'], GRADS[0]['final_norm']['scale']
  np.testing.assert_allclose(new['final_norm']['scale'], scale - 0.5 * np.sign(grad), atol=1e-6)


def test_numbers_come_from_hyper_and_not_from_the_config():
  other = battery.tiny()
  config = battery.tiny(**SETTINGS)
  assert battery.same_bits(
    run(other, hyper_arrays(config))[0], run(config, hyper_arrays(config))[0]
  )


def test_a_gradient_of_zero():
  config = battery.tiny(**SETTINGS)
  hypers = hyper_arrays(config)
  zero = jax.tree.map(np.zeros_like, PARAMS)
  opt_state = optimizer.init(config, PARAMS, hypers)
  new, _, norm = optimizer.update(config, zero, opt_state, PARAMS, hypers, jnp.float32(0.5))
  assert norm == 0
  assert np.array_equal(new['final_norm']['scale'], PARAMS['final_norm']['scale'])
  np.testing.assert_allclose(new['embed']['table'], PARAMS['embed']['table'] * 0.85, rtol=1e-6)
