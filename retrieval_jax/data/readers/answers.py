"""The field of a record that holds the right answers to its question."""

from collections.abc import Mapping
from typing import Any

from retrieval_jax.data import errors
from retrieval_jax.data.readers import lines

_FIELDS = ('answers', 'answer', 'Answer')
# Of an object: TriviaQA's, that set on the hub, and SQuAD's.
_ONE, _MANY = ('Value', 'value'), ('Aliases', 'aliases', 'text')


def read(where: str, record: Mapping[str, Any], *, required: bool = True
         ) -> list[str]:
  """Returns the answers of a record, strings of which each is right.

  The field is "answers", "answer" or "Answer". It holds one string, a list of
  them, or an object with "Value" and "Aliases" (TriviaQA) or "text" (SQuAD).

  Args:
    where: 'file:line'.
    record: with its fields.
    required: whether there must be an answer; else [] says that there is none.

  Raises:
    DataError: for another value, or an answer that is empty.
  """
  name = lines.first(record, _FIELDS)
  value = record.get(name)
  if isinstance(value, Mapping):
    one, many = lines.first(value, _ONE), lines.first(value, _MANY)
    listed = value.get(many)
    value = [*([value[one]] if value.get(one) is not None else []),
             *(listed if isinstance(listed, list) else [])]
  found = [lines.text(where, name, text)
           for text in (value if isinstance(value, list) else
                        [] if value is None else [value])]
  if required and not found or any(not text.strip() for text in found):
    raise errors.DataError(
        f'{where}: expected in field "{name}" the answers, a list of strings '
        f'that are not empty, got {lines.shown(record.get(name))}. Add one, or '
        'remove the record.')
  return list(dict.fromkeys(found))


def are_listed(record: Mapping[str, Any]) -> bool:
  """Returns whether a record looks as if it had answers, not a passage."""
  value = record.get(lines.first(record, _FIELDS))
  return (record.get('answers') is not None
          or isinstance(value, (list, Mapping)))
