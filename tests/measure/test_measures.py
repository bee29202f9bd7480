"""What is measured adds up; nothing here depends on how fast the machine is."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import pytest

from tests import battery
from transformer import memory, tensors
from transformer.measure import (
  footprint,
  loop,
  pipeline,
  profile,
  shares,
  starting,
  timing,
  training,
)
from transformer.measure.measures import Asked


def test_short_steps_are_timed_many_in_a_row() -> None:
  runs: list[int] = []

  def go(steps: int) -> None:
    runs.append(steps)
    time.sleep(0.002 * steps)

  times = timing.chunked(go, seconds=0.5)
  assert runs[:2] == [3, 1]  # warm-up, then the one that says how many go into a chunk
  assert len(times) == len(runs) - 2 >= 5
  assert 10 < runs[2] <= 50
  assert all(0.002 <= t < 0.02 for t in times)
  assert timing.per_step([1, 2, 3]) == {
    'step_ms': 2000,
    'step_ms_quartiles': [1000, 3000],
    'times': 3,
  }


def test_a_share_of_peak_is_of_the_type_and_all_devices() -> None:
  kinds = {'float32->float32': {'a': 50, 'b': 100}, 'bfloat16->float32': {'a': 400}}
  ceilings = {'matmul_gflops': kinds, 'memory_gb_per_s': 10}
  facts = {'gflops_per_s': 200, 'chips': 4, 'xla_gb_per_step': 0.5, 'step_ms': 100}
  config = battery.tiny()
  told = shares.of_peak(facts, ceilings, config)
  assert (told['mfu'], told['memory_share']) == (0.5, 0.125)
  narrow = config.replace(**{'model.dtype': 'bfloat16'})
  assert shares.of_peak(facts, ceilings, narrow)['mfu'] == 0.125
  assert math.isnan(shares.peak_gflops({'matmul_gflops': {}}, 'float32'))


def test_evaluation_counts_a_third_of_training() -> None:
  config = battery.tiny()
  train, evaluate = (training.measure(Asked(w, config, 0.0)).facts for w in ('train', 'evaluate'))
  assert train['flops_per_token'] == 3 * evaluate['flops_per_token']
  assert train['step_memory_mb']['peak'] > evaluate['step_memory_mb']['peak']


def test_the_loop_of_a_run_beside_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(loop, '_LEAST', 8)
  facts = loop.measure(Asked('loop', battery.tiny(), 0.0)).turn()
  assert 1 < facts['times'] < 8  # a row a step, the first of them not timed
  assert facts['host_share'] == pytest.approx(1 - facts['bare_step_ms'] / facts['step_ms'])


@pytest.mark.exhaustive
def test_a_second_start_finds_what_the_first_compiled() -> None:
  """In folders of their own, whatever this process's environment keeps elsewhere."""
  facts = starting.measure(Asked('start', battery.tiny(), 0.0)).turn()
  for times in (facts['cold'], facts['warm']):
    stages = [times[s] for s in ('imported_s', 'data_s', 'compiled_s', 'first_step_s')]
    assert stages == sorted(stages) and stages[0] > 0
  assert facts['first_step_s'] == facts['warm']['first_step_s']
  assert facts['cold']['kept_programs'] == 0 < facts['warm']['kept_programs']


def test_text_to_batches() -> None:
  config = battery.tiny().replace(**{'data.tokenizer': 'bpe(vocab_size=300)'})
  facts = pipeline.measure(Asked('data', config, 0.0, corpus_mb=0.2)).turn()
  assert 0 < facts['cut_s'] < facts['prepare_s'] > facts['learn_s'] > 0
  assert facts['tokens_per_s'] == pytest.approx(facts['tokens'] / facts['cut_s'])
  assert facts['first_batch_s'] > 0 and facts['batch_tokens_per_s'] > 0


def test_generated_text_is_of_the_size_asked_for_and_always_the_same(tmp_path: Path) -> None:
  texts = []
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    pipeline.write_text(tmp_path / name, 0.5)
    texts.append(b''.join(p.read_bytes() for p in sorted((tmp_path / name).iterdir())))
  assert texts[0] == texts[1]
  assert 0.5e6 <= len(texts[0]) < 0.9e6


def test_the_compiled_step_holds_its_state_and_more() -> None:
  """The state is 16 bytes a parameter: weights, two moments, and the gradient in between."""
  config = battery.tiny()
  told = footprint.step(config)
  state = memory.state(config)
  held = (sum(state.values()) - state['gradient']) / 2**20
  assert held < told['step_memory_mb']['arguments'] < held * 1.1 + 0.01
  assert told['estimate_mb'] == (sum(state.values()) + tensors.kept_bytes(config)) / 2**20
  assert told['step_peak_mb'] > told['estimate_mb'] / 2


def test_the_compiled_step_writes_its_state_in_place() -> None:
  """Of a model that is all weights: beside the state a gradient, and no second state."""
  config = battery.tiny(**{'model.d_model': 256, 'parallel.mesh': 'data:1', 'data.batch_size': 2})
  told = footprint.step(config)['step_memory_mb']
  assert told['temporaries'] < 2 * memory.state(config)['gradient'] / 2**20


@dataclasses.dataclass
class Event:
  """As jax.profiler's."""

  start_ns: float
  duration_ns: float
  name: str
  stats: tuple = (('hlo_op', ''),)


def test_time_within_another_operation_counts_once() -> None:
  """outer runs 0–100 with inner 10–40 in it; a loop holds others; Python's events are none."""
  line = dataclasses.make_dataclass('Line', ['events'])(
    [
      Event(0, 200, 'while.3'),
      Event(0, 100, 'outer'),
      Event(10, 30, 'inner'),
      Event(100, 50, 'inner'),
      Event(0, 500, 'python', ()),
    ]
  )
  plane = dataclasses.make_dataclass('Plane', ['lines'])([line])
  trace = dataclasses.make_dataclass('Trace', ['planes'])([plane])
  assert profile.by_operation(trace) == {'outer': (70, 1), 'inner': (80, 2)}


@pytest.mark.parametrize(
  ('origin', 'told'),
  [
    (
      'jit(train_step)/transpose(jvp(Decoder))/Decoder._run/closed_call/layers/ffn/btf,fd->btd/dot',
      'backward: layers/ffn/btf,fd->btd',
    ),
    ('jit(train_step)/jvp(Decoder)/Decoder._run/layers/add', 'forward: layers/add'),
    ('jit(train_step)/adam/mul', 'adam/mul'),
    ('', ''),
  ],
)
def test_origins_are_told_briefly(origin: str, told: str) -> None:
  assert profile._short(origin) == told
