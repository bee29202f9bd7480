"""Variants in one string: all of them there and back; every mistake has its sentence."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from tests import battery
from transformer import spec
from transformer.config import SETTINGS
from transformer.errors import UserError, nearest

DECLARED = [(slot, name) for slot in spec.slots() for name in spec.variants(slot)]


def error(slot: str, text: str) -> str:
  with pytest.raises(UserError) as e:
    spec.parse(slot, text)
  return str(e.value)


@pytest.mark.parametrize(('slot', 'name'), DECLARED)
def test_every_variant_goes_to_text_and_back(slot, name):
  declaration = spec.variants(slot)[name]
  fields = dataclasses.fields(declaration)
  changed = battery.moved(declaration)
  assert all(getattr(changed, f.name) != f.default for f in fields)
  assert spec.parse(slot, spec.canonical(changed)) == changed
  if all(f.default is not dataclasses.MISSING for f in fields):
    assert spec.canonical(spec.parse(slot, name)) == name  # defaults are left out
    assert spec.parse(slot, spec.usage(declaration)) == declaration()


@pytest.mark.parametrize(
  ('slot', 'registry'),
  [
    ('ffn.activation', 'activations.BODIES'),
    ('optim.name', 'optimizer.OPTIMIZERS'),
    ('optim.schedule', 'optimizer.SCHEDULES'),
    ('moe.router', 'routers.ROUTERS'),
    ('moe.dispatch', 'dispatch.DISPATCHERS'),
    ('data.source', 'data.sources.SOURCES'),
    ('data.tokenizer', 'data.tokenizers.TOKENIZERS'),
  ],
)
def test_declarations_and_bodies_are_the_same_set(slot, registry):
  module, _, name = registry.rpartition('.')
  bodies = getattr(importlib.import_module(f'transformer.{module}'), name)
  assert set(spec.variants(slot)) - {'auto'} == set(bodies)  # which resolve takes out


def test_slots_are_settings_and_defaults_are_variants():
  assert set(spec.slots()) <= set(SETTINGS)
  for slot in spec.slots():
    spec.parse(slot, SETTINGS[slot].default)


@pytest.mark.parametrize(
  ('slot', 'text', 'canonical'),
  [
    ('data.tokenizer', 'bpe', 'bpe'),
    ('data.tokenizer', 'bpe()', 'bpe'),
    ('data.tokenizer', ' bpe( 300 ) ', 'bpe(vocab_size=300)'),
    ('data.tokenizer', 'bpe(vocab_size=4096)', 'bpe'),
    ('model.positions', 'rotary(500)', 'rotary(base=500.0)'),
    ('ffn.activation', 'product', 'product'),
    ('ffn.activation', 'product(silu, identity())', 'product'),
    ('ffn.activation', 'product(on_up=relu)', 'product(on_up=relu)'),
    ('ffn.activation', 'product(\'relu\', "tanh")', 'product(on_gate=relu, on_up=tanh)'),
    (
      'ffn.activation',
      'product( leaky_relu( 0.2 ),elu(alpha=1))',
      'product(on_gate=leaky_relu(slope=0.2), on_up=elu)',
    ),
    ('optim.name', 'adamw(.8, eps=1e-6)', 'adamw(b1=0.8, eps=1e-06)'),
    ('moe.router', 'topk(score=after)', 'topk(score=after)'),
    ('moe.router', 'topk(3, "sigmoid")', 'topk(k=3, score=sigmoid)'),
    ('moe.router', 'topk(score=softmax)', 'topk'),
    ('data.source', 'text:a b.txt', 'text:a b.txt'),
    ('data.source', "text('a b.txt')", 'text:a b.txt'),
    ('data.source', 'text(glob="a:b")', 'text:a:b'),
    ('data.source', 'tfds:wikipedia/20230601.en', 'tfds:wikipedia/20230601.en'),
    ('moe.dispatch', 'capacity(priority=choice)', 'capacity(priority=choice)'),  # of choices
    ('moe.router', 'topk(4, "after")', 'topk(k=4, score=after)'),
  ],
)
def test_ways_of_writing(slot, text, canonical):
  assert spec.canonical(spec.parse(slot, text)) == canonical


@pytest.mark.parametrize(
  ('slot', 'text', 'message'),
  [
    ('ffn.activation', 'reluu', "no variant 'reluu'; did you mean relu?"),
    (
      'model.norm',
      'xyzzy',
      "no variant 'xyzzy'; choose from layernorm, none, rmsnorm",
    ),
    ('ffn.activation', 'relu(alpha=1)', "relu has no argument 'alpha'; it takes none"),
    ('ffn.activation', 'relu(1)', 'relu takes no argument(s), got 1'),
    ('ffn.activation', 'relu:1', 'relu takes no argument(s), got 1'),
    ('optim.name', 'adamw(bb=.9)', "adamw has no argument 'bb'; did you mean b2?"),
    ('optim.name', 'adamw(.9, b1=.8)', 'b1 is given twice'),
    ('optim.name', 'adamw(1, 2, 3, 4)', 'adamw takes 3 argument(s), got 4'),
    ('optim.name', 'adamw(b1=1.0)', 'b1: 1.0 is above the most allowed, 0.9999999'),
    ('optim.name', 'adamw(eps=-1)', 'eps: -1.0 is below the least allowed, 0.0'),
    ('model.positions', 'rotary(base="x")', "base: 'x' should be of type float"),
    ('model.positions', 'rotary(base=None)', 'base: None should be of type float'),
    ('model.positions', 'rotary(base=1e999)', 'base: inf is not a number to run with'),
    (
      'moe.router',
      'topk(score=relu)',
      "score: no choice 'relu'; choose from after, sigmoid, softmax",
    ),
    ('moe.router', 'topk(score=1)', 'score: 1 should be of type str'),
    ('moe.router', 'topk(k=after)', 'expected name or name(argument=value), with literal values'),
    ('data.tokenizer', 'bpe(True)', 'vocab_size: True should be of type int'),
    ('data.tokenizer', 'bpe(1e3)', 'vocab_size: 1000.0 should be of type int'),
    ('data.tokenizer', 'bpe(256)', 'vocab_size: 256 is below the least allowed, 257'),
    ('data.source', 'tfds', "tfds needs name, as in tfds:NAME or tfds('NAME', reverse=False)"),
    ('data.source', 'text("")', 'glob: is empty'),
    ('data.source', 'synthetic:5', "rows: '5' should be of type int"),
    ('moe.router', 'topk(score=sigmoi)', "score: no choice 'sigmoi'; did you mean sigmoid?"),
    ('moe.router', 'topk(k=two)', 'expected name or name(argument=value), with literal values'),
  ],
)
def test_mistakes(slot, text, message):
  assert error(slot, text) == f'--{slot}={text}: {message}'


GARBAGE = [
  '',
  ' ',
  '1',
  'elu(',
  'elu)',
  'elu(1',
  'elu elu',
  'elu, gelu',
  'elu.gelu',
  'elu()()',
  'elu(gelu)',
  'elu(gelu())',
  'elu(alpha=gelu)',
  'elu(*[])',
  'elu(**{})',
  'elu(alpha=1, alpha=2)',
  'elu({[]: 1})',
  'elu(lambda: 0)',
  'elu(alpha := 1)',
  'elu; import os',
  '__import__("os").system("false")',
  'elu(__import__("os").system("false"))',
  'elu\0',
  '(' * 300,
  'elu(' + '[' * 250 + ']' * 250 + ')',
  'elu(' + '-' * 20000 + '1)',
  'elu(' + '1+' * 20000 + '1)',
]
MALFORMED = 'expected name or name(argument=value), with literal values'


@pytest.mark.parametrize('text', GARBAGE, ids=lambda text: repr(text[:24]))
def test_garbage_is_refused_and_never_run(text):
  assert error('ffn.activation', text) == f'--ffn.activation={text}: {MALFORMED}'


@pytest.mark.parametrize(
  'inner',
  [
    '1',
    '[relu]',
    'relu.gelu',
    'relu()()',
    '__import__("os").system("false")',
    *('-' * depth + '1' for depth in (90, 300, 900, 2000, 20000)),
    *('(' * depth + ')' * depth for depth in (90, 300)),
  ],
  ids=lambda text: repr(text[:24]),
)
def test_garbage_as_an_argument_that_is_a_variant(inner):
  message = error('ffn.activation', f'product(relu, {inner})')
  assert message.startswith('--ffn.activation=') and message.endswith(f': {MALFORMED}')


def test_an_integer_too_long_for_a_float():
  text = f'rotary({"9" * 400})'
  assert error('model.positions', text) == (
    f'--model.positions={text}: base: inf is not a number to run with'
  )


def test_nearest():
  assert nearest('lernin_rate', ['learning_rate', 'steps']) == '; did you mean learning_rate?'
  assert nearest('zzz', ['b', 'a']) == '; choose from a, b'


def test_declared_twice():
  with pytest.raises(ValueError, match=r'^ffn\.activation=relu is declared twice$'):
    spec.declare('ffn.activation', 'relu')(type('Again', (), {}))


def test_every_variant_and_argument_says_what_it_is():
  for slot, name in DECLARED:
    declaration = spec.variants(slot)[name]
    assert declaration.__doc__.splitlines()[0].rstrip('.')
    for field in dataclasses.fields(declaration):
      assert field.metadata['help'] and field.metadata['kind'] in ('static', 'traced')
