"""Functions of the standard library and what they do, as pairs."""

from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest

from transformer import data
from transformer.data import sources
from transformer.data.stdlib_pairs import pairs

MODULE = r'''
class Stack:
  def push(self, item):
    """Puts an item on top.  It stays
    there until popped.

    More of it.
    """
    self.items.append(item)  # the last is the top

  async def pop(self):
    """
    Takes the item on top
    and returns it, e.g. a plate
    """

    return self.items.pop()

def one(): "Returns the number one."; return 1

def two(
  ä: str = 'über',
) -> int: "Returns the number ü two." ; return 2

def outer():
  """Makes a function inside."""
  def inner():
    """Does nothing at all."""
  return inner

@decorated
def text():
    """Gives text of three lines! Yes."""
    return """a
  b
      c"""

def bare(): return 1

def short():
  """Too short."""

def again():
  """Puts an item on top."""

def one(): "Gives the number one back."; return 1
'''


def found(text):
  return {sentence: code for _, code, sentence in pairs([('p', text.encode())])}


def test_code_from_def_on_and_the_docstrings_first_sentence():
  assert found(MODULE) == {
    'Puts an item on top.': (
      'def push(self, item):\n  self.items.append(item)  # the last is the top'
    ),
    'Takes the item on top and returns it, e.g. a plate': (
      'async def pop(self):\n\n  return self.items.pop()'
    ),
    'Returns the number one.': 'def one(): return 1',
    'Returns the number ü two.': "def two(\n  ä: str = 'über',\n) -> int: return 2",
    'Makes a function inside.': (
      'def outer():\n  def inner():\n    """Does nothing at all."""\n  return inner'
    ),
    'Does nothing at all.': 'def inner():',
    'Gives text of three lines!': 'def text():\n    return """a\n  b\n      c"""',
  }


def test_neither_code_nor_sentence_comes_twice_in_any_package():
  other = 'def other():\n  """Puts an item on top."""\n  return 3\n'
  modules = [('a', MODULE.encode()), ('b', MODULE.encode()), ('c', other.encode())]
  assert {package for package, *_ in pairs(modules)} == {'a'}


def test_what_is_long_is_left_out():
  def module(code=0, words=0):
    return f'def f():\n  """What it does{" more" * words}."""\n  return {"1" * code}\n'

  assert len(found(module())) == 1
  assert not found(module(code=1500)) and not found(module(words=40))


def test_a_module_that_cannot_be_parsed_is_passed_over():
  broken = [('a', b'def f(:'), ('b', b'# coding: utf-8\nx = "\xff"'), ('c', b'# coding: none\n')]
  assert len(list(pairs([*broken, ('d', MODULE.encode())]))) == 7


def test_a_module_tells_its_encoding():
  text = '# coding: latin-1\ndef f():\n  """Écrit le nom."""\n  return "é"\n'
  [(package, code, sentence)] = pairs([('p', text.encode('latin-1'))])
  assert (package, code, sentence) == ('p', 'def f():\n  return "é"', 'Écrit le nom.')


@pytest.fixture(scope='module')
def loaded(stdlib_config):
  return data.load(
    stdlib_config.replace(
      **{
        'model.architecture': 'encoder_decoder',
        'data.tokenizer': 'bpe(vocab_size=4096)',
        'data.source_len': 256,
        'data.seq_len': 48,
      }
    )
  )


def test_thousands_of_functions_split_by_package(loaded, stdlib_config):
  info = loaded.info
  assert info['documents'] > 4000 and info['source'] == 'stdlib'
  assert 0.03 < info['held_out_pairs'] / (info['train_pairs'] + info['held_out_pairs']) < 0.2
  assert info['train_pairs_too_long'] < 0.1 * info['documents']
  assert 2 < loaded.held_out_bytes / info['held_out_tokens'] < 5
  text = data.load(stdlib_config).info
  assert info['held_out_groups'] <= text['held_out_groups']  # the same ones, if they have pairs


def test_pairs_are_of_real_functions_and_no_target_is_learned_and_held_out(loaded):
  rows = loaded.rows[np.arange(len(loaded.rows))]
  learned = {loaded.tokenizer.decode(row[loaded.source_len :]) for row in rows}
  assert len(learned) == len(rows)
  held_out = loaded.held_out_texts()
  assert not learned & {target for _, target in held_out}
  code = loaded.tokenizer.decode(rows[0][: loaded.source_len])
  assert any(code.split('\n')[0] in content.decode() for _, content in sources._modules())
  parsed = 0
  for source, target in held_out:
    assert len(target.split()) > 2
    try:
      [node] = ast.parse(source).body
    except SyntaxError:  # nothing is left of a function that is a docstring alone
      continue
    parsed += 1
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    assert inspect.cleandoc(ast.get_docstring(node) or '') != target
  assert parsed > 0.9 * len(held_out)
