"""What others wrote is printed cut and without commands to the terminal."""

from unittest import mock

from absl import flags
import pytest

from experiments import process
from experiments import search
from retrieval_jax import terminal
from retrieval_jax import trained
from retrieval_jax.data.readers import lines


@pytest.mark.parametrize('text, expected', [
    ('plain ünï 最後\u3000\u200d🐱', 'plain ünï 最後\u3000\u200d🐱'),
    ('\x1b[31mred\x07', r'\x1b[31mred\x07'), ('a\r\n\tb', r'a\r\n\tb'),
    ('\x9b2J\u2028\u202e', r'\x9b2J\u2028\u202e'), ('\ud800', r'\ud800'),
    ('x' * 20, 'x' * 20), ('x' * 21, 'x' * 17 + '...')])
def test_texts_are_cut_and_escaped(text, expected):
  assert terminal.shown(text, 20) == expected


def test_line_ends_may_stay():
  assert terminal.shown('a\n\x1bb', 20, keep='\n') == 'a\n\\x1bb'


def test_messages_show_values_cut():
  assert lines.shown('\x1b' * 10**6) == "'" + r'\x1b' * 14 + '...'
  assert lines.shown({'a': 1}) == "{'a': 1}"


def test_the_message_of_a_script_is_cut_and_escaped(monkeypatch):
  monkeypatch.delenv('RETRIEVAL_JAX_TRACEBACK', raising=False)
  with pytest.raises(SystemExit) as ended, process.script():
    raise ValueError('first\nsecond \x1b[2J' + 'x' * 10**6)
  message = str(ended.value)
  assert message.startswith('error: first\nsecond \\x1b[2Jx')
  assert len(message) < 5000


def test_search_prints_a_line_for_each_passage(capsys):
  retriever = mock.Mock()
  retriever.search.return_value = trained.Found(
      [['d\x1b', 'x' * 1000]], [[2., 1.]], [['a\nb\x1b[2J', 'word ' * 10**6]])
  values = flags.FlagValues()
  search.define_flags(values)
  values(['search', '--workdir=x', '--query=q\x07'])
  with mock.patch.object(trained, 'open_either', return_value=retriever):
    search.main(['search'], values)
  printed = capsys.readouterr().out
  assert printed.replace('\n', '').isprintable()
  empty, query, first, second = printed.splitlines()
  assert (empty, query) == ('', r'q\x07')
  assert first.endswith(r'd\x1b  a\nb\x1b[2J')
  assert second.endswith('...') and len(second) < 400
