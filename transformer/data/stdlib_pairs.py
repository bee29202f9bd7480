"""What functions of the standard library do, in a sentence: pairs of code and its docstring.

Modules are parsed, never imported.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator

_CODE, _SENTENCE = 1500, 200  # characters at most
_WORDS = 3  # of a sentence at least: not 'Constructor.', nor 'self + other'
_END = re.compile(r'(?<=[.!?])\s+(?=[A-Z])')


def pairs(modules: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, str, str]]:
  """(package, code, sentence) of each function and method that has a docstring.

  modules: package and content. Code is the module's text from `def` on, dedented and without the
  docstring; the sentence is the docstring's first. What is too long is left out, and a code or a
  sentence that came before, so that no target is in both parts of a split.
  """
  seen = set()
  for package, content in modules:
    try:
      text, tree = importlib.util.decode_source(content), ast.parse(content)
    except (SyntaxError, UnicodeDecodeError):  # examples of what is none, in some builds
      continue
    lines, kinds = text.split('\n'), ast.FunctionDef | ast.AsyncFunctionDef
    functions = (node for node in ast.walk(tree) if isinstance(node, kinds))
    for node in sorted(functions, key=lambda node: node.lineno):
      if docstring := ast.get_docstring(node):
        code, sentence = _code(node, lines), _sentence(docstring)
        fits = len(code) <= _CODE and len(sentence) <= _SENTENCE
        if fits and len(sentence.split()) >= _WORDS and not seen & {code, sentence}:
          seen |= {code, sentence}
          yield package, code, sentence


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
  """What stands in the module's lines, less the docstring and the indentation."""
  docstring = node.body[0]
  first, last = docstring.lineno - 1, docstring.end_lineno
  before = lines[first].encode()[: docstring.col_offset].decode()
  after = lines[last - 1].encode()[docstring.end_col_offset :].decode().lstrip('; ')
  beside = [(before + after).rstrip()] if (before + after).strip() else []
  kept = [*lines[node.lineno - 1 : first], *beside, *lines[last : node.end_lineno]]
  indent = node.col_offset
  return '\n'.join(k if k[:indent].strip() else k[indent:] for k in kept).rstrip()


def _sentence(docstring: str) -> str:
  """The first of its first paragraph, on one line."""
  paragraph = inspect.cleandoc(docstring).partition('\n\n')[0]
  return _END.split(' '.join(paragraph.split()))[0]
