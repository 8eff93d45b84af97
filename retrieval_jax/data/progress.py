"""Progress of long passes: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar('T')

_LINE_EVERY_SECONDS = 10.0


def track(items: Iterable[T], what: str, *, total: int | None = None,
          unit: str = 'texts', show: bool = True) -> Iterator[T]:
  """Yields `items` unchanged while showing how far the pass is, on stderr.

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
    import tqdm  # pylint: disable=g-import-not-at-top
    yield from tqdm.tqdm(items, desc=what, total=total, unit=f' {unit}',
                         mininterval=0.5, leave=False)
    return
  started = shown = time.monotonic()
  for count, item in enumerate(items, 1):
    yield item
    if time.monotonic() - shown > _LINE_EVERY_SECONDS:
      shown = time.monotonic()
      of_total = f' of {total:,}' if total else ''
      rate = count / (shown - started)
      print(f'{what}: {count:,}{of_total} {unit}, {rate:,.0f}/s',
            file=sys.stderr, flush=True)
