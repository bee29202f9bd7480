"""Rows, shuffling and the held-out pass, on a stream small enough to write down."""

from __future__ import annotations

import numpy as np
import pytest

from transformer.data import batches
from transformer.errors import UserError


def tiny(order=batches.grain_order, seed=0, tokens=41, held_out=15, batch=4, length=4):
  """Streams that count up, so that a token names its place."""
  return batches.Data(
    info={},
    fingerprint='',
    tokenizer=None,
    held_out_bytes=0,
    batch_size=batch,
    seq_len=length,
    train=(np.arange(tokens, dtype=np.uint16),),
    held_out=(np.arange(held_out, dtype=np.uint16),),
    order=order((tokens - 1) // length, seed),
  )


def test_rows_overlap_by_one_token_and_drop_what_does_not_fill_a_row():
  data = tiny(tokens=15)
  rows = data.rows[np.arange(len(data.rows))]
  assert rows.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12]]
  assert rows.dtype == np.int32


def test_held_out_keeps_every_token_and_pads_with_minus_one():
  data = tiny(held_out=15, batch=3)  # 14 predictions: rows of 4, 4, 4 and 2
  rows = [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 11, 12], [12, 13, 14, -1, -1]]
  got = list(data.eval_batches())
  assert [b.tolist() for b in got] == [rows[:3], [rows[3], [-1] * 5, [-1] * 5]]
  assert data.eval_batch_count == 2 and all(b.dtype == np.int32 for b in got)


@pytest.mark.parametrize('held_out', [2, 4, 5, 6, 12, 13, 14, 48, 49, 50])
def test_held_out_predicts_each_token_but_the_first_once(held_out):
  data = tiny(held_out=held_out)
  targets = np.concatenate([b[:, 1:].ravel() for b in data.eval_batches()])
  assert targets[targets >= 0].tolist() == list(range(1, held_out))


@pytest.mark.parametrize('order', [batches.grain_order, batches.numpy_order])
class TestOrder:
  def test_every_epoch_visits_each_row_once_in_its_own_order(self, order):
    find = order(101, 3)
    epochs = [find(e * 101, e * 101 + 101) for e in range(4)]
    for epoch in epochs:
      assert sorted(epoch.tolist()) == list(range(101))
    assert len({tuple(e.tolist()) for e in epochs}) == 4

  def test_batch_is_a_function_of_seed_and_number(self, order):
    one, other = tiny(order), tiny(order)
    forward = [one.train_batch(i).tolist() for i in range(9)]
    backward = [other.train_batch(i).tolist() for i in reversed(range(9))]
    assert forward == backward[::-1]
    assert forward != [tiny(order, seed=1).train_batch(i).tolist() for i in range(9)]

  def test_one_epoch_of_batches_holds_each_row_once(self, order):
    data = tiny(order, tokens=81)  # 20 rows, 5 batches of 4
    first = np.concatenate([data.train_batch(i) for i in range(5)])
    assert sorted(first[:, 0].tolist()) == list(range(0, 80, 4))

  @pytest.mark.parametrize('processes', [1, 2, 4])
  def test_processes_together_make_the_global_batch(self, order, processes):
    data = tiny(order)
    for i in (0, 2, 7):  # batch 2 spans two epochs of 10 rows
      parts = [data.train_batch(i, p, processes) for p in range(processes)]
      assert np.array_equal(np.concatenate(parts), data.train_batch(i))

  def test_seeds_share_no_epoch(self, order):
    epochs = [
      tuple(order(101, seed)(e * 101, e * 101 + 101)) for seed in range(4) for e in range(4)
    ]
    assert len(set(epochs)) == 16  # grain alone gives seed 1 in epoch 0 what seed 0 has in epoch 1

  def test_one_row_is_enough(self, order):
    assert order(1, 0)(0, 3).tolist() == [0, 0, 0]


def test_batch_not_divisible_by_processes():
  with pytest.raises(UserError) as e:
    tiny().train_batch(0, 0, 3)
  assert str(e.value) == '--data.batch_size=4: not divisible by the 3 processes'


def test_token_type_is_the_smallest_that_fits():
  assert [batches.token_type(v) for v in (257, 65536, 65537)] == [np.uint16, np.uint16, np.uint32]
