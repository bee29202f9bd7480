"""Accounting of an encoder, and of an encoder with a decoder, by hand.

That counts equal the tree and the products of the jaxpr, for these as for decoders, is in
test_count.py.
"""

from __future__ import annotations

import pytest

from tests import battery
from transformer import count, matching

BOTH = {'model.architecture': 'encoder_decoder'}
ENCODER = {'model.architecture': 'encoder'}


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    ({}, {}),
    # The encoder is asked of half as many tokens for each of the target's.
    (
      {'data.source_len': 4},
      {
        'attention projections': 4096 + 4096 // 2,
        'attention scores': 1024 + 512 // 2,  # and its tokens have half as many keys
        'cross-attention projections': 2048 + 2048 // 2,  # queries and out; keys and values
        'cross-attention scores': 512,
        'ffn': 3072 + 3072 // 2,
      },
    ),
    ({'model.num_encoder_layers': 1}, {'attention projections': 6144, 'ffn': 4608}
     | {'attention scores': 1536}),
    # One head of keys and values of two: 2 layers · 2·16·(16 + 16 and 8 + 8).
    ({'model.num_kv_heads': 1}, {'attention projections': 6144}
     | {'cross-attention projections': 2048 + 1024}),
    # Values half as wide: all costs of heads, 16 wide before, are 12 for d_k 8 and d_v 4.
    ({'model.v_head_dim': 4}, {'attention projections': 6144, 'attention scores': 1536}
     | {'cross-attention projections': 3072, 'cross-attention scores': 768}),
    ({'ffn.encoder_activation': 'swiglu'}, {'ffn': 3072 + 4608}),
    ({'ffn.encoder_ratios': '1,0'}, {'ffn': 3072 + 2 * 2 * 16 * 16}),
    ({'model.head': 'transform'}, {'head': 2 * 16 * 16}),
    ({'model.shared_source': False, 'model.attention_window': 2, 'ffn.shared': True}, {}),
  ],
)  # fmt: skip
def test_flops_by_hand(changes, parts):
  """d 16, 2 and 2 layers, 2 heads of 8, d_ff 24, vocabulary 32, 8 tokens each; per target token.

  Self-attention and FFN are twice a decoder's. Cross-attention: as much as one stack's.
  """
  expected = {
    'attention projections': 2 * 4096,
    'attention scores': 2 * 1024,
    'cross-attention projections': 4096,
    'cross-attention scores': 1024,
    'ffn': 2 * 3072,
    'logits': 1024,
  }
  assert count.flops_by_part(battery.tiny(**BOTH | changes)) == expected | parts


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    (BOTH, {}),
    (BOTH | {'model.shared_source': False}, {'embedding': 2 * 512}),
    (BOTH | {'model.shared_source': False, 'model.tied': False}, {'embedding': 3 * 512}),
    (
      BOTH | {'model.positions': 'learned', 'data.source_len': 5},
      {'embedding': 512 + (8 + 5) * 16},
    ),
    (BOTH | {'model.positions': 'relative(buckets=8)'}, {'embedding': 512 + 2 * 8 * 2}),
    (
      BOTH | {'model.num_encoder_layers': 3},
      {'attention': 5 * 1024, 'ffn': 5 * 768, 'norms': 112 + 3 * 32 + 16},
    ),
    # Keys and queries as before; values and out, 16·2·4 each, half.
    (BOTH | {'model.v_head_dim': 4}, {'attention': 4 * 768, 'cross-attention': 2 * 768}),
    (
      BOTH | {'model.v_head_dim': 4, 'model.bias': True},
      {
        'attention': 4 * (768 + 16 + 16 + 8 + 16),
        'cross-attention': 2 * (768 + 16 + 16 + 8 + 16),
      },
    ),
    (BOTH | {'model.qk_norm': True}, {'norms': 192 + (4 + 2) * 2 * 8}),
    (BOTH | {'model.norm_placement': 'post'}, {'norms': 192 - 2 * 16}),
    (BOTH | {'model.norm_placement': 'sandwich'}, {'norms': 192 + (4 + 6) * 16}),
    (BOTH | {'model.parallel_branches': True}, {'norms': 4 * 16 + 2 * 16}),
    (BOTH | {'ffn.shared': True}, {'ffn': 768}),
    (BOTH | {'ffn.encoder_activation': 'swiglu'}, {'ffn': 1536 + 2 * 3 * 16 * 24}),
    # An encoder layer without an FFN has no norm for it.
    (BOTH | {'ffn.encoder_ratios': '0,2'}, {'ffn': 1536 + 2 * 16 * 32, 'norms': 192 - 16}),
    (BOTH | {'model.embedding_norm': True}, {'norms': 192 + 2 * 16}),
  ],
)
def test_parameters_of_both_by_hand(changes, parts):
  """32·16; 4 layers · 4·16·16; 2 · 4·16·16; 4 · 2·16·24; norms: 2·2 + 1 and 2·3 + 1 of 16."""
  expected = {
    'embedding': 512,
    'attention': 4096,
    'cross-attention': 2048,
    'ffn': 3072,
    'norms': 192,
  }
  assert count.params_by_part(battery.tiny(**changes)) == expected | parts


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    ({}, {}),
    ({'model.token_types': 2}, {'embedding': 512 + 2 * 16}),
    ({'model.embedding_norm': True}, {'norms': 80 + 16}),
    ({'model.head': 'transform'}, {'embedding': 512 + 16 * 16 + 16, 'norms': 80 + 16}),
    ({'model.positions': 'relative(buckets=8)'}, {'embedding': 512 + 8 * 2}),
    ({'model.attention_window': 2}, {}),
  ],
)
def test_parameters_of_an_encoder_by_hand(changes, parts):
  """Those of a decoder."""
  expected = {'embedding': 512, 'attention': 2048, 'ffn': 1536, 'norms': 80}
  assert count.params_by_part(battery.tiny(**ENCODER | changes)) == expected | parts


def test_stacks_groups_depths_and_branches():
  config = battery.tiny(
    **BOTH,
    **{
      'model.num_encoder_layers': 3,
      'ffn.encoder_ratios': '1,1,0',
      'ffn.encoder_activation': 'glu',
    },
  )
  assert count.stacks(config) == ['encoder_layers', 'layers']
  assert count.groups(config) == [
    count.Group('encoder_layers_0', 0, 2, 16, 'encoder_layers', 0),
    count.Group('encoder_layers_2', 2, 1, 0, 'encoder_layers', 0),
    count.Group('layers', 0, 2, 24, 'layers', 3),
  ]
  assert [count.depth(config, stack) for stack in count.stacks(config)] == [3, 2]
  assert [count.branches(config, stack) for stack in count.stacks(config)] == [6, 6]
  assert [count.activation(config, stack) for stack in count.stacks(config)] == ['glu', 'gelu']
  names = [count.branch_names(config, group) for group in count.groups(config)]
  assert names == [['attention', 'ffn'], ['attention'], ['attention', 'cross_attention', 'ffn']]
  alone = battery.tiny(**ENCODER)
  assert count.groups(alone) == count.groups(battery.tiny()) == [count.Group('layers', 0, 2, 24)]
  assert count.branches(alone, 'layers') == 4


@pytest.mark.parametrize('budget', matching.BUDGETS)
def test_a_budget_is_met_with_a_source_too(budget):
  """d_ff of both stacks gives way; with widths of its own an encoder keeps them."""
  cost = matching.BUDGETS[budget]
  target = cost(battery.tiny(**BOTH | {'ffn.d_ff': 48}))
  for own in ('', '2'):
    asked = battery.tiny(**BOTH | {'ffn.activation': 'swiglu', 'ffn.encoder_ratios': own})
    matched = matching.match_d_ff(asked, target, budget)
    unit = cost(matched.replace(**{'ffn.d_ff': matched.ffn.d_ff + 1})) - cost(matched)
    assert abs(cost(matched) - target) <= unit / 2
    widths = {group.stack: group.d_ff for group in count.groups(matched)}
    assert widths['encoder_layers'] == (32 if own else widths['layers'])
