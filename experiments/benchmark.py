"""How fast is a training step here, and how near to what the machine can do?

  python -m experiments.benchmark --preset=bench
  python -m experiments.benchmark --preset=bench --model.dtype=bfloat16 --json

Runs on synthetic data and needs jax, flax, optax and absl-py alone. The ceiling is measured first:
the fastest large matrix product in the run's type. mfu is the share of it that the model's own
FLOPs reach (no credit for recomputation). step_ms is the median; its spread is printed beside it.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

from transformer import count, flags
from transformer.config import Config, resolve
from transformer.errors import UserError

flags.define(**{'data.source': 'synthetic', 'model.unroll': True})
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object a line')
SECONDS = flags.script_flag('float', 'seconds', 10.0, 'time to measure for, after warm-up')


def main() -> int:
  asked = flags.config()
  if asked.data.source != 'synthetic' and not asked.data.source.startswith('synthetic('):
    raise UserError(f'--data.source={asked.data.source}: benchmarks run on synthetic data')
  facts = measure(resolve(asked), SECONDS.value)
  if JSON.value:
    print(json.dumps(facts))
    return 0
  for name, value in facts.items():
    shown = f'{value:,.4g}' if isinstance(value, float) else value
    print(f'{name:>16}  {shown}')
  return 0


def measure(config: Config, seconds: float) -> dict:
  """Compiles and times the training step of a resolved config."""
  import jax

  from transformer import data, provenance, train

  peak = matmul_peak(config.model.dtype)
  source = data.load(config)
  start = time.perf_counter()
  program = train.Program(config)
  state = program.init(config)
  batches = [source.train_batch(i) for i in range(8)]
  state, _ = program.train_step(state, program.put(batches[0]))
  jax.block_until_ready(state)
  compile_s = time.perf_counter() - start
  times: list[float] = []
  warm_up = 3
  while len(times) < warm_up + 5 or sum(times[warm_up:]) < seconds:
    start = time.perf_counter()
    state, metrics = program.train_step(state, program.put(batches[len(times) % 8]))
    jax.block_until_ready(metrics)
    times.append(time.perf_counter() - start)
  times = times[warm_up:]
  step_s = statistics.median(times)
  low, _, high = statistics.quantiles(times, n=4)
  tokens = config.data.batch_size * config.data.seq_len
  # Forced CPU devices share the cores whose peak was measured.
  chips = 1 if jax.default_backend() == 'cpu' else len(program.executor.devices)
  flops_per_s = count.flops_per_token(config) * tokens / step_s
  scale = 2**20 if sys.platform == 'darwin' else 2**10
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
    'flops_per_token': count.flops_per_token(config),
    'peak_rss_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale,
    'dtype': config.model.dtype,
    'batch': [config.data.batch_size, config.data.seq_len],
    'shape': f'{config.model.num_layers} layers, d_model {config.model.d_model}, '
    f'd_ff {config.ffn.d_ff}, {config.ffn.activation}, vocabulary {config.model.vocab_size}',
    'device': f'{len(jax.devices())} x {jax.devices()[0].device_kind}',
    'cpu': provenance.cpu_model(),
    'cores': provenance.cores(),
    'versions': {k: v for k, v in provenance.versions().items() if k in ('jax', 'flax', 'optax')},
  }


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
