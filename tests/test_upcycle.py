"""Upcycling: experts that begin as the dense model did, and what there is none of."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.battery import flat, jiggle, same_bits, stir, tiny, weights
from tests.interop.goldens import logits
from transformer import count, params
from transformer.errors import UserError
from transformer.upcycle import upcycle

SHAPES = {
  'plain': ({}, 'experts=4, k=2, layers=every(2)'),
  'gated, with biases and slopes, of widths of their own': (
    {
      **{'model.num_layers': 4, 'ffn.d_ff': 0, 'ffn.ratios': '1,0,2,2', 'ffn.bias': True},
      'ffn.activation': 'product(prelu, silu)',
    },
    'experts=5; layers=2,0; k=3',
  ),
  'encoder_decoder': ({'model.architecture': 'encoder_decoder'}, "experts=2, layers='last(1)'"),
}
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 2, 8)).astype(np.int32)


@pytest.mark.parametrize('name', SHAPES)
def test_at_first_it_is_the_dense_model(name: str) -> None:
  changes, text = SHAPES[name]
  config = tiny(**changes)
  dense = jiggle(weights(config))
  wide, found = upcycle(config, dense, text)
  tokens = TOKENS if config.model.architecture == 'encoder_decoder' else TOKENS[:1]
  wanted = logits(config, dense, *tokens)
  np.testing.assert_allclose(logits(wide, found, *tokens), wanted, atol=1e-5)
  assert {path: x.shape for path, x in flat(found).items()} == count.shapes(wide)
  path = next(path for path in count.shapes(wide) if path.endswith('experts/down'))
  other = logits(wide, stir(found, path), *tokens)  # the negative control: copies that are none
  assert np.abs(other - wanted).max() > 1e-2


def test_weights_that_add_up_to_less_are_another_model() -> None:
  config = tiny()
  wide, found = upcycle(config, dense := jiggle(weights(config)), SHAPES['plain'][1])
  loose = wide.replace(**{'moe.router': 'topk(renormalise=False)'})
  difference = logits(loose, found, TOKENS[0]) - logits(config, dense, TOKENS[0])
  assert np.abs(difference).max() > 1e-2


def test_routers_are_those_a_run_begins_with() -> None:
  config = tiny(seed=7)
  wide, found = upcycle(config, weights(config), 'experts=4, layers=1')
  key = jax.random.split(jax.random.key(7))[0]
  fresh = jax.jit(params.initialize, static_argnums=0)(wide, key)
  assert same_bits(found['layers_1']['ffn']['router'], fresh['layers_1']['ffn']['router'])
  assert 'router' not in found['layers_0']['ffn']


def test_what_there_is_no_mixture_of() -> None:
  config = tiny()
  dense = weights(config)
  sparse = upcycle(config, dense, 'experts=4')[0]
  k_1 = (
    'k=1 either has the weight 1 always, and its router never learns, or another, and the result '
    'is not the dense model; take k=2 or more'
  )
  refused = {
    'experts=0': 'experts: 0 is below the least allowed, 1',
    'experts=-2': 'experts: -2 is below the least allowed, 1',
    'experts=many': "experts: 'many' should be of type int",
    'experts': "experts: '' should be of type int",
    'k=2': "of how many experts? Say it, as in 'experts=8'",
    '8': "no argument '8'; choose from experts, k, layers",
    'experts=8, layer=1': "no argument 'layer'; did you mean layers?",
    'experts=8, k=2, k=3': 'k is given twice',
    'experts=4, k=1': k_1,
    'experts=4, k=5': '--moe.router=topk(k=5): k=5 is above --moe.experts=4; lower it',
    'experts=4, layers=9': '--moe.layers=9: there is no layer 9; they are 0 to 1',
    'experts=4, layers=none': '--moe.experts=4: no layer has them; see --moe.layers, --ffn.ratio',
  }
  for text, said in refused.items():
    with pytest.raises(UserError) as e:
      upcycle(config, dense, text)
    assert str(e.value) == f'--upcycle={text}: {said}'
  with pytest.raises(UserError) as e:
    upcycle(sparse, {}, 'experts=8')
  assert str(e.value) == '--upcycle=experts=8: the source has 4 experts; name a dense one'
