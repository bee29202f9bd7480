"""What a compiled program says of itself: operations, bytes, memory, and where they come from."""

from __future__ import annotations

import re

import jax

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{.*?op_name="([^"]*)"')


def costs(compiled: jax.stages.Compiled) -> dict[str, float]:
  """GFLOPs and gigabytes moved by one device, as XLA counts them.

  A loop's body counts once, however often it runs, and a library's kernel as XLA knows it: with
  scanned layers, or micro-batches, the true number is a multiple.
  """
  found = compiled.cost_analysis() or {}
  return {
    'xla_gflops_per_step': found.get('flops', 0.0) / 1e9,
    'xla_gb_per_step': found.get('bytes accessed', 0.0) / 1e9,
  }


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes on one device: what goes in, what comes out anew, what is scratch, and the most at once.

  Outputs that take the place of arguments (a step's state) count among those.
  """
  found = compiled.memory_analysis()
  parts = {
    'arguments': found.argument_size_in_bytes,
    'outputs': found.output_size_in_bytes - found.alias_size_in_bytes,
    'temporaries': found.temp_size_in_bytes,
    'code': found.generated_code_size_in_bytes,
  }
  return parts | {'peak': sum(parts.values())}


def origins(compiled: jax.stages.Compiled) -> dict[str, str]:
  """Name of an operation -> where in the model it comes from, as JAX named it."""
  lines = compiled.as_text().splitlines()
  return {m[1]: m[2] for m in map(_INSTRUCTION.match, lines) if m}
