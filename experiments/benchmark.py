"""How fast are training and decoding here, and how near to what the machine can do?

  python -m experiments.benchmark --preset=bench
  python -m experiments.benchmark --preset=bench --model.dtype=bfloat16 --json
  python -m experiments.benchmark --preset=bench --what=decode --data.seq_len=512
  python -m experiments.benchmark --preset=bench --ffn.activation=swiglu --ffn.d_ff=512 \
    --moe.experts=8 --against='--moe.experts=0 --ffn.d_ff=1024'
  python -m experiments.benchmark --preset=bench --what=decode --data.seq_len=512 --beams=4 \
    --data.batch_size=4 --against_command='python their_benchmark.py'

Runs on synthetic data and needs jax, flax, optax and absl-py alone. The ceiling is measured first:
the fastest large matrix product in the run's type. mfu is the share of it that the model's own
FLOPs reach (no credit for recomputation). step_ms is the median; its spread is printed beside it.

Decoding continues random prompts by --new_tokens each, and never ends early; tokens_per_s counts
the new tokens of --data.batch_size prompts. --against names flags to measure the same with, and
--against_command a program that measures the same elsewhere and prints JSON objects with
tokens_per_s, a line each, the last of which counts: it and ours take turns --rounds times in one
sitting, and ratio is the median of ours over theirs.
"""

from __future__ import annotations

import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from transformer import count, flags
from transformer.config import Config, resolve
from transformer.errors import UserError

Turn = Callable[[], dict]  # measures once more, what was prepared before

flags.define(**{'data.source': 'synthetic', 'model.unroll': True})
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object a line')
SECONDS = flags.script_flag('float', 'seconds', 10.0, 'time to measure for, after warm-up')
WHAT = flags.script_flag('str', 'what', 'train', 'train | decode')
PROMPT = flags.script_flag('int', 'prompt_tokens', 32, 'decode: tokens a prompt')
NEW = flags.script_flag('int', 'new_tokens', 256, 'decode: tokens it is continued by')
BEAMS = flags.script_flag('int', 'beams', 0, 'decode: width of a beam search; 0: greedy')
AGAINST = flags.script_flag('str', 'against', '', 'other flags to take turns with')
COMMAND = flags.script_flag('str', 'against_command', '', 'a program to take turns with')
ROUNDS = flags.script_flag('int', 'rounds', 3, 'turns with --against or --against_command')


def main() -> int:
  asked = flags.config()
  if asked.data.source != 'synthetic' and not asked.data.source.startswith('synthetic('):
    raise UserError(f'--data.source={asked.data.source}: benchmarks run on synthetic data')
  measures = {'train': training, 'decode': decoding}
  if WHAT.value not in measures:
    raise UserError(f'--what={WHAT.value}: choose from {", ".join(measures)}')
  if AGAINST.value and COMMAND.value:
    raise UserError('--against: --against_command is given as well; leave one of them out')
  for flag, least in ((PROMPT, 1), (NEW, 1), (BEAMS, 0), (ROUNDS, 1)):
    if flag.value < least:
      raise UserError(f'--{flag.name}={flag.value}: below the least allowed, {least}')
  ours, theirs = measures[WHAT.value](resolve(asked)), None
  if AGAINST.value:
    theirs = measures[WHAT.value](resolve(flags.varied(AGAINST.value, 'against')))
  if COMMAND.value:
    theirs = functools.partial(foreign, COMMAND.value)
  facts = in_turns(ours, theirs)
  if JSON.value:
    print(json.dumps(facts))
    return 0
  for name, value in facts.items():
    shown = f'{value:,.4g}' if isinstance(value, float) else value
    print(f'{name:>16}  {shown}')
  return 0


def in_turns(ours: Turn, theirs: Turn | None) -> dict:
  """What `ours` measures; with `theirs` beside it, what they do and the ratio of the two."""
  if theirs is None:
    return ours()
  rounds = [(ours(), theirs()) for _ in range(ROUNDS.value)]
  rates = [(mine['tokens_per_s'], theirs['tokens_per_s']) for mine, theirs in rounds]
  ratios = [mine / theirs for mine, theirs in rates]
  middle = sorted(range(len(ratios)), key=ratios.__getitem__)[len(ratios) // 2]
  mine, theirs = rounds[middle]
  told = {'ratio': statistics.median(ratios), 'ratio_by_round': [round(r, 3) for r in ratios]}
  what = {'against_command': COMMAND.value} if COMMAND.value else {'against_flags': AGAINST.value}
  return mine | told | {'against': theirs} | what


def foreign(command: str) -> dict:
  """The last JSON object with tokens_per_s that a command prints. Raises UserError without one."""
  done = subprocess.run(command, shell=True, capture_output=True, text=True)
  for line in reversed(done.stdout.splitlines()):
    try:
      if float(json.loads(line)['tokens_per_s']) > 0:
        return json.loads(line)
    except (ValueError, TypeError, KeyError):
      continue
  said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ['nothing']
  raise UserError(
    f'--against_command={command}: status {done.returncode}, and no line of JSON with a '
    f'tokens_per_s above 0; it said: {said[0][:200]}'
  )


def decoding(config: Config) -> Turn:
  """Times the continuation of random prompts by a fresh model of a resolved config."""
  import jax
  import numpy as np

  from transformer import decode, params

  rows, new = config.data.batch_size, NEW.value
  weights = params.variables(config, jax.random.key(0))
  rng, shape = np.random.default_rng(0), (rows, PROMPT.value)
  prompts = list(rng.integers(1, config.model.vocab_size, shape).astype(np.int32))

  def go() -> float:
    start = time.perf_counter()
    if BEAMS.value:
      decode.beam_search(config, weights, prompts, new, BEAMS.value, end=None)
    else:
      decode.generate(config, weights, prompts, new, end=None)
    return time.perf_counter() - start

  first = go()

  def turn() -> dict:
    times = [go()]
    while len(times) < 3 or sum(times) < SECONDS.value:
      times.append(go())
    middle = statistics.median(times)
    return {
      'what': 'decode',
      'tokens_per_s': rows * new / middle,
      'step_ms': 1e3 * middle / new,
      'step_ms_range': [round(1e3 * t / new, 3) for t in (min(times), max(times))],
      'times': len(times),
      'compile_s': first - middle,
      'beams': BEAMS.value,
      'prompt_tokens': PROMPT.value,
      'new_tokens': new,
      'params': count.params(config),
      'kept_bytes_per_token': _kept_bytes(config),
      **_setting(config),
    }

  return turn


def _kept_bytes(config: Config) -> int:
  """Keys and values of one token, float32, over all layers."""
  n = count.sizes(config)
  return 4 * n['L'] * n['K'] * (n['H'] + n['W'])


def training(config: Config) -> Turn:
  """Compiles and times the training step of a resolved config."""
  import jax

  from transformer import data, train

  peak = matmul_peak(config.model.dtype)
  source = data.load(config)
  start = time.perf_counter()
  program = train.Program(config)
  state = program.init(config)
  batches = [source.train_batch(i) for i in range(8)]
  state, _ = program.train_step(state, program.put(batches[0]))
  jax.block_until_ready(state)
  compile_s = time.perf_counter() - start
  tokens = config.data.batch_size * config.data.seq_len
  # Forced CPU devices share the cores whose peak was measured.
  chips = 1 if jax.default_backend() == 'cpu' else len(program.executor.devices)

  def turn() -> dict:
    nonlocal state
    times: list[float] = []
    warm_up = 3
    while len(times) < warm_up + 5 or sum(times[warm_up:]) < SECONDS.value:
      start = time.perf_counter()
      state, metrics = program.train_step(state, program.put(batches[len(times) % 8]))
      jax.block_until_ready(metrics)
      times.append(time.perf_counter() - start)
    times = times[warm_up:]
    step_s = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    flops_per_s = count.flops_per_token(config) * tokens / step_s
    return {
      'what': 'train',
      'tokens_per_s': tokens / step_s,
      'step_ms': 1e3 * step_s,
      'step_ms_quartiles': [round(1e3 * low, 3), round(1e3 * high, 3)],
      'steps_timed': len(times),
      'compile_s': compile_s,
      'mfu': flops_per_s / (peak * chips),
      'gflops_per_s': flops_per_s / 1e9,
      'peak_gflops_per_s': peak / 1e9,
      'params': count.params(config),
      'active_params': count.active_params(config),
      'flops_per_token': count.flops_per_token(config),
      **_setting(config),
    }

  return turn


def _setting(config: Config) -> dict:
  """What was measured, on what, and the memory it took."""
  import jax

  from transformer import provenance

  scale = 2**20 if sys.platform == 'darwin' else 2**10
  return {
    'peak_rss_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale,
    'dtype': config.model.dtype,
    'batch': [config.data.batch_size, config.data.seq_len],
    'shape': _shape(config),
    'device': f'{len(jax.devices())} x {jax.devices()[0].device_kind}',
    'cpu': provenance.cpu_model(),
    'cores': provenance.cores(),
    'versions': {k: v for k, v in provenance.versions().items() if k in ('jax', 'flax', 'optax')},
  }


def _shape(config: Config) -> str:
  m, moe = config.model, config.moe
  experts = f'{moe.experts} experts by {moe.router}, {moe.dispatch}, ' if moe.experts else ''
  return (
    f'{m.num_layers} layers, d_model {m.d_model}, {experts}d_ff {config.ffn.d_ff}, '
    f'{config.ffn.activation}, vocabulary {m.vocab_size}'
  )


def matmul_peak(dtype: str) -> float:
  """FLOP/s of the fastest square matrix product `dtype` × `dtype` on one device, best of several.

  Both a result in `dtype` and one in float32 are tried: a CPU may be slow at the first.
  """
  import jax
  import jax.numpy as jnp

  n = 1024 if jax.default_backend() == 'cpu' else 8192
  a = jax.random.normal(jax.random.key(0), (n, n), jnp.float32).astype(dtype)
  best = 0.0
  for out in {dtype, 'float32'}:
    product = jax.jit(lambda x, y, out=out: jnp.matmul(x, y, preferred_element_type=out))
    try:
      jax.block_until_ready(product(a, a))
      for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    except jax.errors.JaxRuntimeError:  # a product that this backend does not have
      continue
  return best


if __name__ == '__main__':
  flags.run(main)
