"""Optimizers against the papers' algorithms in NumPy."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from tests import reference_optimizer as reference
from tests.test_count import SHAPES as MODELS
from transformer import axes, count, optimizer, params, spec, state, step, train
from transformer.config import PRESETS, Config, hyper, resolve, static_key
from transformer.errors import UserError
from transformer.state import hyper_arrays

RNG = np.random.default_rng(0)
SHAPES = {
  'embed/table': (5, 4),
  'final_norm/scale': (4,),
  'layers/attention/query': (2, 4, 3, 2),
  'layers/attention/query_bias': (2, 3, 2),
  'layers/attention/out': (2, 3, 2, 4),
  'layers/ffn/up': (2, 4, 3),
  'layers/ffn/up_bias': (2, 3),
}


def nest(leaves: dict) -> dict:
  tree: dict = {}
  for path, leaf in leaves.items():
    *owners, name = path.split('/')
    node = tree
    for owner in owners:
      node = node.setdefault(owner, {})
    node[name] = leaf
  return tree


PARAMS = nest({path: np.float32(RNG.normal(size=shape)) for path, shape in SHAPES.items()})
STEPS = 6
GRADS = [
  jax.tree.map(lambda x, s=s: np.float32(s * RNG.normal(size=x.shape)), PARAMS)
  for s in (0.05, 3.0, 0.02, 1.0, 0.1, 7.0)  # norms on both sides of the largest allowed, 1
]


SETTINGS = {
  'optim.name': 'adamw(b1=0.8, b2=0.9, eps=1e-3)',
  'optim.weight_decay': 0.3,
  'optim.learning_rate': 0.05,
  'optim.clip_norm': 1.0,
  'optim.schedule': 'cosine(warmup=0.5)',
  'train.steps': STEPS,
}


SHARES = [1 / 3, 2 / 3, 1, 1, *(0.1 + 0.45 * (1 + np.cos(np.pi * d / 3)) for d in (1, 2))]


def run(config: Config, hypers: dict) -> tuple[dict, list[float]]:
  params, norms = jax.tree.map(jnp.asarray, PARAMS), []
  opt_state = optimizer.init(config, params, hypers)
  update = jax.jit(lambda *a: optimizer.update(config, *a))
  norm_of = jax.jit(optimizer.global_norm)
  for i, grads in enumerate(GRADS):
    rate = optimizer.learning_rate(config, jnp.int32(i), hypers)
    norms.append(norm_of(grads))
    scale = optimizer.clip(norms[-1], hypers)
    params, opt_state = update(grads, scale, opt_state, params, hypers, rate)
  return battery.flat(params), [float(norm) for norm in norms]


def oracle(decay_everything=False, clip_norm=1.0, decay=0.3, b2=0.9) -> dict[str, np.ndarray]:
  """Six steps of the paper's algorithm on each array; rates 1/3, 2/3, 1, then half a cosine."""
  values = {path: np.float64(x) for path, x in battery.flat(PARAMS).items()}
  moments = dict.fromkeys(values, (0.0, 0.0))
  for i, grads in enumerate(GRADS):
    grads = reference.clip({k: np.float64(g) for k, g in battery.flat(grads).items()}, clip_norm)
    for path in values:
      decays = decay_everything or axes.param(path).decay
      values[path], moments[path] = reference.adamw(
        values[path], grads[path], moments[path], i + 1, 0.05 * SHARES[i],
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


@pytest.mark.exhaustive
def test_the_first_step_by_hand():
  """Moments cancel their bias: the first step is rate · (sign(g) + decay · value), eps aside."""
  config = battery.tiny(
    **SETTINGS | {'optim.name': 'adamw(eps=0)', 'optim.schedule': 'cosine(warmup=0)'}
  )
  hypers = hyper_arrays(config)
  opt_state = optimizer.init(config, PARAMS, hypers)
  scale = optimizer.clip(optimizer.global_norm(GRADS[0]), hypers)
  new, _ = optimizer.update(config, GRADS[0], scale, opt_state, PARAMS, hypers, jnp.float32(0.5))
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
  norm = optimizer.global_norm(zero)
  scale = optimizer.clip(norm, hypers)
  new, _ = optimizer.update(config, zero, scale, opt_state, PARAMS, hypers, jnp.float32(0.5))
  assert norm == 0
  assert np.array_equal(new['final_norm']['scale'], PARAMS['final_norm']['scale'])
  np.testing.assert_allclose(new['embed']['table'], PARAMS['embed']['table'] * 0.85, rtol=1e-6)


# --- The other optimizers: each layer's tensor by itself, heads and head width as one dimension.

FLAT = {
  'layers/attention/query': (4, 6),
  'layers/attention/query_bias': (6,),
  'layers/attention/out': (6, 4),
}
HIDDEN = ('layers/attention/query', 'layers/attention/out', 'layers/ffn/up')


def tensors(tree: dict) -> dict[tuple, np.ndarray]:
  """(path, layer) -> the tensor of that layer in float64, as an optimizer should see it."""
  found = {}
  for path, leaf in battery.flat(tree).items():
    layers = leaf if path.startswith('layers') else leaf[None]
    for i, x in enumerate(layers):
      found[path, i] = np.float64(x).reshape(FLAT.get(path, x.shape))
  return found


def by_adam(path, value, grad, memory, step, b1=0.9, b2=0.95, eps=1e-8):
  return reference.adam(grad, memory or (0.0, 0.0), step, b1, b2, eps)


def by_sgd(path, value, grad, memory, step, momentum=0.9, nesterov=False):
  return reference.sgd(grad, 0.0 if memory is None else memory, momentum, nesterov)


def by_lion(path, value, grad, memory, step, b1=0.9, b2=0.99):
  return reference.lion(grad, 0.0 if memory is None else memory, b1, b2)


def by_adafactor(path, value, grad, memory, step, power=0.8, clip=1.0, relative=False, least=4):
  factored = grad.ndim == 2 and min(grad.shape) >= least
  memory = memory or ((0.0, 0.0) if factored else (0.0,))
  return reference.adafactor(value, grad, memory, step, power, clip, relative, factored)


def by_muon(path, value, grad, memory, step, beta=0.95, nesterov=True, iterations=5, b1=0.9):
  if path not in HIDDEN:
    return by_adam(path, value, grad, memory, step, b1)
  return reference.muon(grad, 0.0 if memory is None else memory, step, beta, nesterov, iterations)


def walk(oracle, decay=0.3, l2=0.0, **arguments) -> dict[tuple, np.ndarray]:
  """Six steps at the rates of SETTINGS, clipped together, each tensor by itself."""
  values, memory = tensors(PARAMS), {}
  for i, grads in enumerate(GRADS):
    grads = reference.clip(tensors(grads), 1.0)
    for key, value in values.items():
      decays = axes.param(key[0]).decay
      grad = grads[key] + (l2 * value if decays else 0.0)
      step, memory[key] = oracle(key[0], value, grad, memory.get(key), i + 1, **arguments)
      values[key] = value - 0.05 * SHARES[i] * (step + (decay * value if decays else 0.0))
  return values


CASES = [  # (--optim.name, oracle, its arguments, arguments that must be told apart)
  ('adamw(b2=0.9)', by_adam, {'b2': 0.9}, {'b2': 0.89}),
  ('adam(l2=0.2)', by_adam, {'l2': 0.2, 'decay': 0}, {'l2': 0.0, 'decay': 0.2}),
  ('sgd(l2=0.2)', by_sgd, {'l2': 0.2, 'decay': 0}, {'l2': 0.19, 'decay': 0}),
  ('sgd(momentum=0.5, nesterov=True)', by_sgd, {'momentum': 0.5, 'nesterov': True, 'decay': 0},
   {'momentum': 0.5, 'decay': 0}),
  ('lion(b1=0.8, b2=0.9)', by_lion, {'b1': 0.8, 'b2': 0.9}, {'b1': 0.8, 'b2': 0.5}),
  ('adafactor(factor_from=4)', by_adafactor, {}, {'least': 9}),
  ('adafactor', by_adafactor, {'least': 9}, {'least': 9, 'power': 0.79}),
  ('adafactor(factor_from=4, relative=True, power=0.5, clip=0.7)', by_adafactor,
   {'relative': True, 'power': 0.5, 'clip': 0.7}, {'relative': True, 'power': 0.5, 'clip': 1.0}),
  ('muon', by_muon, {}, {'iterations': 4}),
  ('muon(beta=0.8, nesterov=False, iterations=3, b1=0.5)', by_muon,
   {'beta': 0.8, 'nesterov': False, 'iterations': 3, 'b1': 0.5},
   {'beta': 0.8, 'nesterov': True, 'iterations': 3, 'b1': 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'oracle', 'arguments', 'wrong'), CASES, ids=[c[0] for c in CASES])
def test_against_its_paper(name, oracle, arguments, wrong):
  decay = {} if 'l2' in name or name.startswith('sgd') else {'optim.weight_decay': 0.3}
  settings = SETTINGS | {'optim.name': name, 'optim.weight_decay': 0.1} | decay
  config = battery.tiny(**settings)
  got, _ = run(config, hyper_arrays(config))
  got = tensors(nest(got))
  assert off(got, walk(oracle, **arguments)) < 1e-5
  assert off(got, walk(oracle, **wrong)) > 1e-4  # negative control
  if decay:
    assert off(got, walk(oracle, **arguments | {'decay': 0.0})) > 1e-3


# --- What holds for every optimizer.

NAMES = sorted(spec.variants('optim.name'))


def test_declarations_and_bodies_are_the_same_set():
  assert set(NAMES) == set(optimizer.OPTIMIZERS)


@pytest.mark.parametrize('name', NAMES)
def test_any_optimizer_learns_at_its_own_rate_and_compiles_once(name):
  config = battery.tiny(**{'optim.name': name, 'train.steps': 30})
  create = jax.jit(functools.partial(state.create, config))
  train = jax.jit(lambda s, b: step.train_step(config, s, b, lambda x: x))
  current, losses = create(np.uint32(0), hyper_arrays(config)), []
  batch = {'tokens': battery.tokens(config), 'rows': np.arange(8, dtype=np.int32)}
  for _ in range(30):
    current, metrics = train(current, batch)
    losses.append(float(metrics['train/loss'][0] / metrics['train/loss'][1]))
  assert np.all(np.isfinite(losses)) and losses[-1] < losses[0] - 0.3
  assert int(current.skipped) == 0 and train._cache_size() == 1


def test_rates_left_open_follow_the_width_and_the_optimizer():
  def rate(**changes: object) -> float:
    return resolve(Config().replace(**changes)).optim.learning_rate

  assert rate() == 0.003 and rate(**{'model.d_model': 96}) == 0.008
  assert rate(**{'optim.name': 'lion', 'model.d_model': 96}) == 0.0024
  assert rate(**{'optim.name': 'sgd', 'model.d_model': 96}) == 0.48
  assert rate(**{'optim.name': 'muon'}) == rate(**{'optim.name': 'adafactor'}) == 0.003
  for width in (96, 1024):  # muP carries a rate from the base to any width
    mup = {'optim.parametrization': 'mup(base_d_model=64)', 'model.d_model': width}
    assert rate(**mup) == 0.012
  assert rate(**mup, **{'optim.learning_rate': 0.5}) == 0.5


def test_what_has_l2_has_no_decay_beside_the_step():
  config = battery.tiny(**{'optim.name': 'adam(l2=0.2)'})
  assert config.optim.weight_decay == 0 and resolve(config) == config
  assert battery.tiny(**{'optim.name': 'adamw'}).optim.weight_decay == 0.1


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    (
      {'optim.name': 'sgd', 'optim.weight_decay': 0.01},
      '--optim.weight_decay=0.01: sgd decays through its gradient; set --optim.name=sgd(l2=0.01)',
    ),
    (
      {'optim.name': 'muon(ns=3)'},
      "--optim.name=muon(ns=3): muon has no argument 'ns'; choose from b1, b2, beta, eps, "
      'iterations, nesterov',
    ),
    (
      {'optim.name': 'sgd(nesterov=1)'},
      '--optim.name=sgd(nesterov=1): nesterov: 1 should be of type bool',
    ),
    (
      {'optim.name': 'lion(b1=1)'},
      '--optim.name=lion(b1=1): b1: 1.0 is above the most allowed, 0.9999999',
    ),
    (
      {'optim.name': 'adafactor(clip=0)'},
      '--optim.name=adafactor(clip=0): clip: 0.0 is below the least allowed, 1e-09',
    ),
    ({'optim.name': 'adamx'}, "--optim.name=adamx: no variant 'adamx'; did you mean adam?"),
    ({'optim.ema': 1.0}, '--optim.ema: 1.0 is above the most allowed, 0.9999999'),
    ({'loss.label_smoothing': 1.0}, '--loss.label_smoothing: 1.0 is above the most allowed, 0.99'),
    ({'loss.z_loss': -1.0}, '--loss.z_loss: -1.0 is below the least allowed, 0.0'),
    (
      {'optim.name': 'muon', 'optim.parametrization': 'mup'},
      '--optim.parametrization=mup: has no rule for muon; try adamw, adam, lion',
    ),
    (
      {'optim.name': 'adam(l2=0.1)', 'optim.parametrization': 'mup'},
      '--optim.name=adam(l2=0.1): l2 depends on width, which mup forbids; take adamw',
    ),
    (
      {'model.embedding_scale': 'one', 'optim.parametrization': 'mup'},
      '--optim.parametrization=mup: needs --model.embedding_scale=sqrt_d_model',
    ),
    (
      {'optim.parametrization': 'standard(base_d_model=64)'},
      '--optim.parametrization=standard(base_d_model=64): standard has no argument '
      "'base_d_model'; it takes none",
    ),
  ],
)
def test_mistakes(changes, text):
  with pytest.raises(UserError) as e:
    battery.tiny(**changes)
  assert str(e.value) == text


def test_arguments_that_shape_the_program_are_not_among_its_numbers():
  config = battery.tiny(**{'optim.name': 'muon(nesterov=False)'})
  numbers = {n for n in hyper(config) if n.startswith('optim.name')}
  assert numbers == {f'optim.name.{n}' for n in ('beta', 'b1', 'b2', 'eps')}
  assert static_key(config) != static_key(battery.tiny(**{'optim.name': 'muon'}))
  assert static_key(config) == static_key(
    battery.tiny(**{'optim.name': 'muon(nesterov=False, beta=0.5)'})
  )


# --- Decay: every parameter by exactly one rule.


@pytest.mark.parametrize('name', [*PRESETS, *MODELS])
def test_every_parameter_decays_by_exactly_one_rule(name):
  settings = PRESETS[name] if name in PRESETS else battery.TINY | MODELS[name]
  config = resolve(Config().replace(**settings))
  tree = nest({path: np.zeros(()) for path in count.shapes(config)})
  mask = battery.flat(params.decay_mask(tree))
  assert mask.keys() == count.shapes(config).keys()
  for path, decays in mask.items():
    tail = '/'.join(path.split('/')[-2:])
    rules = [rule for pattern, rule in axes.PARAMS.items() if re.fullmatch(pattern, tail)]
    assert [rule.decay for rule in rules] == [bool(decays)], path


def test_a_parameter_of_no_rule_or_of_two_is_refused(monkeypatch):
  """Negative control of the above."""
  with pytest.raises(KeyError, match='0 rules'):
    params.decay_mask({'ffn': {'sideways': np.zeros(3)}})
  monkeypatch.setitem(axes.PARAMS, r'ffn/\w+', axes.Param('DF', 'D', decay=False))
  with pytest.raises(KeyError, match='2 rules'):
    params.decay_mask({'ffn': {'up': np.zeros((2, 3))}})


# --- On several devices.


LONG = [
  pytest.param(name, marks=pytest.mark.exhaustive) for name in ('muon', 'adafactor(factor_from=8)')
]


@pytest.mark.parametrize('name', ['adamw', *LONG])
def test_state_is_laid_out_as_its_parameters_are_and_agrees_with_one_device(name):
  settings = {'optim.name': name, 'optim.ema': 0.9, 'data.batch_size': 8}
  ends, states = {}, {}
  for mesh in ('data:1', 'data:2,fsdp:2,tensor:2'):
    config = battery.tiny(**settings, **{'parallel.mesh': mesh, 'optim.learning_rate': 0.003})
    program = train.Program(config)
    current = program.init(config)
    for i in range(2):
      current, _ = program.train_step(current, program.put(battery.tokens(config, i)))
    states[mesh] = current
    ends[mesh] = jax.device_get((current.params, current.opt_state, current.ema))
  one, many = ends.values()
  assert battery.largest_difference(one, many) < 1e-4
  leaves = jax.tree_util.tree_flatten_with_path(states['data:2,fsdp:2,tensor:2'])[0]
  layouts = {params.path_of(path): leaf.sharding.spec for path, leaf in leaves}
  want = layouts['params/layers/ffn/up']
  assert any(want)
  same = [p for p in layouts if p.endswith('/layers/ffn/up')]
  assert len(same) >= 2 and all(layouts[p] == want for p in same)  # parameter, average, moments
