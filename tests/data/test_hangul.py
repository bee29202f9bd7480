"""한글 as syllables (NFC) and as the letters they consist of (NFD): other bytes, one look."""

from __future__ import annotations

import unicodedata

import pytest
from tokenizers import normalizers

from tests.data.test_tokenizers import ALL, gpt2, made
from transformer import spec
from transformer.data import tokenizers

NFC, NFD = (unicodedata.normalize(form, '한글 처리') for form in ('NFC', 'NFD'))


@ALL
def test_bytes_come_back_and_the_forms_stay_apart(name):
  tokenizer = made(name)
  composed, letters = tokenizer.encode([NFC, NFD])
  assert tokenizer.decode(composed).encode() == NFC.encode() != NFD.encode()
  assert tokenizer.decode(letters).encode() == NFD.encode()
  assert composed.tolist() != letters.tolist()


@pytest.mark.parametrize('name', ['byte', 'bpe(vocab_size=257)'])
def test_parts_of_characters_are_numbered(name):
  tokenizer = made(name)
  for text in (NFC, NFD):
    parts = [[f'{c} {k}/3' for k in (1, 2, 3)] if c != ' ' else [' '] for c in text]
    assert tokenizer.pieces(text) == [part for some in parts for part in some]


def test_an_entry_of_a_character_and_a_part_of_the_next():
  declared = spec.parse('data.tokenizer', 'bpe(vocab_size=262)')
  tokenizer = tokenizers.bpe(declared, ['한가', '한귀', '한그'] * 9)
  [first, *_] = tokenizer.encode(['한글'])[0]
  assert tokenizer.decode([first]) == '한\ufffd'
  assert tokenizer.pieces('한글') == ['한글 1/3', '글 2/3', '글 3/3']


def test_a_word_learned_in_one_form_is_not_known_in_the_other():
  declared = spec.parse('data.tokenizer', 'bpe(vocab_size=400)')
  tokenizer = tokenizers.bpe(declared, [f'{NFC}\n' * 20])
  composed, letters = tokenizer.encode([NFC, NFD])
  assert tokenizer.pieces(NFC) == ['한글', ' 처리'] and len(composed) == 2
  assert len(letters) == 31  # three bytes a letter, and a blank
  assert tokenizer.decode(letters) == NFD


def test_a_normaliser_makes_one_of_both(tmp_path):
  composing, plain = gpt2(), gpt2()
  composing.normalizer = normalizers.NFC()
  for trained, same in ((composing, True), (plain, False)):
    trained.save(str(tmp_path / 't.json'))
    tokenizer = tokenizers.load(tmp_path / 't.json')
    composed, letters = tokenizer.encode([NFC, NFD])
    assert tokenizer.decode(composed) == NFC
    assert (composed.tolist() == letters.tolist()) == same
    assert tokenizer.decode(letters) == (NFC if same else NFD)


def test_pieces_of_a_normaliser_show_the_letters_it_joined():
  trained = gpt2()
  trained.normalizer = normalizers.NFC()
  tokenizer = tokenizers.Subword(trained)
  shown = [unicodedata.normalize('NFC', piece) for piece in tokenizer.pieces(NFD)]
  assert shown == tokenizer.pieces(NFC)
  assert tokenizer.pieces(NFD)[0] == unicodedata.normalize('NFD', '한') + ' 1/3'
