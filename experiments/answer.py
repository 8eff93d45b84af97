"""Answers questions with a run that has a reader, and shows by which passages.

  python -m experiments.answer --workdir=runs/qa --query="who sang 1999?"
  python -m experiments.answer --workdir=runs/qa                # reads stdin

Below the answer stand the passages that were read, the likeliest given the
answer first: posterior, the retriever's probability, id, and of the text what
is around the passage's own answer, which is highlighted on a terminal. Control
characters are shown as escapes.
"""

from collections.abc import Iterator

from absl import app
from absl import flags
import numpy as np
import rich.console
import rich.text

from experiments import process
from retrieval_jax import terminal
from retrieval_jax import trained

# Characters shown of an id, a question or answer, and on each side of a span.
_ID, _TEXT, _SIDE = 40, 300, 80
_HIGHLIGHT = 'bold reverse'


def define_flags(values):
  """Adds the flags; not at import, where scripts would clash."""
  process.DEFINE_path('workdir', None, 'Folder of the run.', flag_values=values)
  process.DEFINE_path('index', None, 'Folder of an adapted index.',
                      flag_values=values)
  flags.DEFINE_multi_string(
      'query', [], 'A question; may be repeated. Without it, standard input.',
      flag_values=values)
  flags.DEFINE_integer('k', 20, 'Passages that are read.', lower_bound=1,
                       flag_values=values)
  flags.DEFINE_integer('show', 5, 'Passages that are shown.', lower_bound=0,
                       flag_values=values)
  flags.mark_flag_as_required('workdir', flag_values=values)


def main(argv, values=flags.FLAGS):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  console = rich.console.Console(soft_wrap=True, highlight=False)
  with process.script():
    retriever = trained.open(values.workdir)
    index = retriever.index(values.index)
    for query in values.query or process.lines('question'):
      [answered] = retriever.answer([query], values.k, index)
      console.print()
      console.print(rich.text.Text(terminal.shown(query, _TEXT)))
      for line in lines(answered, values.show):
        console.print(line)


def lines(answered: trained.Answered, show: int) -> Iterator[rich.text.Text]:
  """Yields the answer and the `show` likeliest passages, a line each."""
  answer = terminal.shown(answered.answer, _TEXT)
  yield rich.text.Text(f'  {answer or "no answer"}', style='bold')
  # Equal ones, as all where there is no answer, by the retriever.
  for i in np.lexsort((-answered.prior, -answered.posterior))[:show]:
    line = rich.text.Text(
        f'  {answered.posterior[i]:.3f}  {answered.prior[i]:.3f}  '
        f'{terminal.shown(answered.ids[i], _ID):>16}  ')
    start, stop = answered.spans[i] or (0, 0)
    text = answered.texts[i]
    first = max(start - _SIDE, 0)
    if first:
      line.append('...')
    line.append(terminal.shown(text[first:start], _SIDE))
    line.append(terminal.shown(text[start:stop], _TEXT), style=_HIGHLIGHT)
    yield line.append(terminal.shown(text[stop:], _SIDE if stop else _TEXT))


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  app.run(main)
