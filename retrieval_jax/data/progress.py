"""Progress of long passes: a bar on a terminal, else a line now and then."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import sys
import time
from typing import TypeVar

T = TypeVar('T')

_LINE_EVERY_SECONDS = 10.0


def track(items: Iterable[T], what: str, *, total: int | None = None,
          unit: str = 'texts', show: bool = True) -> Iterator[T]:
  """Yields `items` unchanged while showing how far the pass has got, on stderr.

  On a terminal this is a tqdm bar; in a log file, a line every ten seconds,
  so that short passes stay silent.

  Args:
    items: what to go through.
    what: what the pass does, e.g. 'reading corpus.jsonl'.
    total: how many items there are, if known.
    unit: plural noun for the items.
    show: False makes it silent.
  """
  if not show:
    yield from items
    return
  if sys.stderr.isatty():
    import tqdm
    yield from tqdm.tqdm(items, desc=what, total=total, unit=f' {unit}',
                         mininterval=0.5, leave=False)
    return
  lines = _Lines(what, total, unit)
  for item in items:
    yield item
    lines.add(1)


@contextlib.contextmanager
def counter(what: str, *, total: int | None = None, unit: str = 'texts',
            show: bool = True) -> Iterator[Callable[[int], object]]:
  """Yields `add(n)`, to be called when n more items are done; see `track`."""
  if not show:
    yield lambda count: None
  elif sys.stderr.isatty():
    import tqdm
    with tqdm.tqdm(desc=what, total=total, unit=f' {unit}', mininterval=0.5,
                   leave=False) as bar:
      yield bar.update
  else:
    yield _Lines(what, total, unit).add


class _Lines:
  """Prints a line every ten seconds."""

  def __init__(self, what: str, total: int | None, unit: str):
    self._what, self._unit, self._count = what, unit, 0
    self._of_total = f' of {total:,}' if total else ''
    self._started = self._shown = time.monotonic()

  def add(self, count: int) -> None:
    """Counts `count` items more, and prints when it is time."""
    self._count += count
    now = time.monotonic()
    if now - self._shown > _LINE_EVERY_SECONDS:
      self._shown = now
      rate = self._count / (now - self._started)
      print(f'{self._what}: {self._count:,}{self._of_total} {self._unit}, '
            f'{rate:,.0f}/s', file=sys.stderr, flush=True)
