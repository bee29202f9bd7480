"""table.tex: escaped, balanced, and saying where it comes from."""

import re
import shutil
import subprocess

import pytest

from transformer.analysis import latex
from transformer.analysis.load import load

NASTY = '50%_of{a}&b#c$d~e^f\\g<h>i|j'


@pytest.fixture
def tex(run_folder):
  variants = {'relu': (0.0, 0.0), NASTY: (-0.04, 0.004)}
  question = 'Which\nactivation: 50% & more?'
  return latex.tex(load(run_folder(variants=variants, question=question)))


def test_every_special_character_is_escaped():
  assert latex.escape(NASTY) == (
    r'50\%\_of\{a\}\&b\#c\$d\textasciitilde{}e\textasciicircum{}f\textbackslash{}g$<$h$>$i$|$j'
  )
  assert latex.escape('−0.04 ± 0.01 – 2² × ’') == r"$-$0.04 $\pm$ 0.01 -- 2$^2$ $\times$ '"


def test_numbers_are_formulas(tex):
  row = next(line for line in tex.splitlines() if line.startswith(r'50\%\_of'))
  cells = row.removesuffix(r' \\').split(' & ')
  assert cells[1:3] == ['$319{,}968$', '384']
  assert cells[5] == r'$-0.040 \pm 0.007$' and cells[7] == 'better'
  assert re.fullmatch(r'\$3\.\d{3} \\pm 0\.\d{3}\$', cells[3])


def test_the_table_is_whole(tex):
  lines = tex.splitlines()
  head = next(line for line in lines if line.startswith(r'\begin{tabular}'))
  many = len(re.fullmatch(r'\\begin\{tabular\}\{([lr]+)\}', head)[1])
  rows = [line for line in lines if line.endswith(r' \\')]
  assert len(rows) == 1 + 2 + 2  # heading, variants, unigram and bigram
  assert all(len(re.findall(r'(?<!\\)&', row)) == many - 1 for row in rows)
  assert [lines.count(rf'\{rule}') for rule in ('toprule', 'midrule', 'bottomrule')] == [1, 2, 1]
  assert lines[-1] == r'\end{tabular}%' and tex.count('tokens/s') == 0
  body = ''.join(line for line in lines if not line.startswith('%'))
  assert not re.search(r'[−±–²’]', body)


def test_the_comments_say_what_and_where_from(tex):
  comments = [line[2:] for line in tex.splitlines() if line.startswith('% ')]
  assert comments[0] == 'Which activation: 50% & more?'  # one line, whatever the question
  assert comments[1].startswith('At d_model 96, 2 layers, context 64, 0.41 M tokens')
  assert 'digest of the code: c0dec0dec0dec0de' in comments
  assert any(c.startswith('command: python -m experiments.activations') for c in comments)


@pytest.mark.skipif(not shutil.which('pdflatex'), reason='needs pdflatex')
@pytest.mark.parametrize('package', ['', r'\usepackage{booktabs}'])
def test_it_compiles(tex, tmp_path, package):
  (tmp_path / 'table.tex').write_text(tex)
  begin, end = r'\begin{document}', r'\end{document}'
  page = rf'\documentclass{{article}}{package}{begin}\input{{table.tex}}{end}'
  (tmp_path / 'page.tex').write_text(page)
  command = ['pdflatex', '-halt-on-error', 'page.tex']
  subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
