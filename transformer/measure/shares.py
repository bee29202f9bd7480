"""Measured speed as a share of what the machine can do. Plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from transformer import count
from transformer.config import Config


def shapes(configs: Sequence[Config]) -> list[tuple[int, int, int]]:
  """(rows, contracted, columns) of the product into each config's FFN."""
  found = {}
  for config in configs:
    tokens = config.data.batch_size * config.data.seq_len // config.train.accumulate
    if config.ffn.d_ff:
      found[tokens, config.model.d_model, config.ffn.d_ff] = True
  return list(found)


def peak_gflops(ceilings: dict, dtype: str) -> float:
  """Of the fastest product of operands of a type, whatever its result and shape."""
  kinds = ceilings['matmul_gflops'].items()
  rates = [max(by_shape.values()) for kind, by_shape in kinds if kind.startswith(f'{dtype}->')]
  return max(rates, default=float('nan'))


def of_peak(facts: dict, ceilings: dict, config: Config) -> dict:
  """mfu: the model's own FLOPs (no credit for recomputation) over the peak of its type.

  memory_share: bytes as XLA counts them a second, over the measured bandwidth; caches can take it
  above 1, and of a loop's body they are those of one trip, so that loops take it below.
  """
  if 'gflops_per_s' not in facts:
    return {}
  peak, chips = peak_gflops(ceilings, config.model.dtype), facts['chips']
  traffic = facts['xla_gb_per_step'] / facts['step_ms'] * 1e3
  return {
    'mfu': facts['gflops_per_s'] / (peak * chips),
    'peak_gflops_per_s': peak,
    'memory_share': traffic / (ceilings['memory_gb_per_s'] * chips),
  }


def described(config: Config) -> dict:
  """What was measured."""
  m, moe = config.model, config.moe
  experts = f'{moe.experts} experts by {moe.router}, {moe.dispatch}, ' if moe.experts else ''
  shape = (
    f'{m.num_layers} layers, d_model {m.d_model}, {experts}d_ff {config.ffn.d_ff}, '
    f'{config.ffn.activation}, vocabulary {m.vocab_size}'
  )
  return {
    'params': count.params(config),
    'active_params': count.active_params(config),
    'dtype': m.dtype,
    'batch': [config.data.batch_size, config.data.seq_len],
    'shape': shape,
  }
