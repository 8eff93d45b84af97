"""Texts of others as a terminal may show them."""

import re

# Control characters, among them those that begin a terminal's commands, line
# and paragraph separators, what turns the direction of writing, and halves of
# characters, which cannot be printed at all.
_UNSAFE = re.compile(
    '[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069'
    '\ud800-\udfff]')


def shown(text: str, most: int, *, keep: str = '') -> str:
  """Returns a text that is safe to print: escaped, and cut where it is long.

  Args:
    text: any.
    most: characters to keep; '...' at the end says that there were more.
    keep: characters that are not escaped, such as line ends.
  """
  cut = text[:most - 3] + '...' if len(text) > most else text
  return _UNSAFE.sub(
      lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1],
      cut)
