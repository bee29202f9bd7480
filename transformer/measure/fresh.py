"""What a fresh process needs until its first batch, or its first step.

Reads a line of JSON, {'until': 'batch' or 'step', 'config': …, 'spawned': time.time()}, and
prints the seconds from the process's start to each stage, and its memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from transformer.config import Config
from transformer.errors import UserError


def ask(until: str, config: Config, cache: str) -> dict:
  """Starts such a process, which prepares and finds everything in the folder `cache`.

  Returns seconds since its start: imported_s, data_s (first batch at hand), and with until='step'
  compiled_s and first_step_s (waited for), and how many compiled programs it found.
  Raises UserError if it fails.
  """
  # Compiled programs are kept where a run keeps them, below the cache; not where a user says.
  hidden = ('JAX_ENABLE_COMPILATION_CACHE', 'JAX_COMPILATION_CACHE_DIR')
  env = {k: v for k, v in os.environ.items() if k not in hidden} | {'ISOFFN_CACHE': cache}
  config = config.replace(**{'data.cache': cache})
  told = {'until': until, 'config': config.to_json(), 'spawned': time.time()}
  done = subprocess.run(
    [sys.executable, '-m', 'transformer.measure.fresh'],
    input=json.dumps(told),
    env=env,
    stdout=subprocess.PIPE,
    text=True,
  )
  if done.returncode:
    raise UserError(f'--what: a fresh process ended with status {done.returncode}')
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  """The process itself."""
  told = json.loads(sys.stdin.read())
  config, found = Config.from_json(told['config']), {}

  def stage(name: str) -> None:
    found[name] = time.time() - told['spawned']

  from transformer import data

  if told['until'] == 'step':
    import jax

    from transformer import programs, train

    kept = programs.keep(config.data.cache)
    found['kept_programs'] = len(list(kept.iterdir())) if kept else 0
  stage('imported_s')
  source = data.load(config)
  tokens = source.train_batch(0)
  stage('data_s')
  if told['until'] == 'step':
    program = train.program(config)
    state, batch = program.init(config), program.put(tokens)
    program.train_step.lower(state, batch).compile()
    stage('compiled_s')
    jax.block_until_ready(program.train_step(state, batch))
    stage('first_step_s')
  from transformer.measure.worker import peak_rss_mb

  print(json.dumps(found | {'peak_rss_mb': peak_rss_mb()}))


if __name__ == '__main__':
  main()
