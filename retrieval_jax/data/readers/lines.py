"""Text files read line by line or record by record, with their line numbers.

What the readers of all formats share: lines, JSON records and tables of any
size in bounded memory, checked fields, and files named after their split.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import csv
import io
import json
import os
import re
from typing import Any

from retrieval_jax import files
from retrieval_jax import terminal
from retrieval_jax.data import errors

COMPRESSED = rf'({"|".join(map(re.escape, files.COMPRESSIONS))})?'
"""Pattern of what may follow a file's ending."""

_SHOWN = 60  # characters of a value in a message
_CHUNK = 1 << 20  # characters read at a time
_LARGEST_SCORE = 3e38  # scores are stored as float32
_ZEROS = re.compile(r'(?<=\d)\.0*(?=\s*$)')
_NO_SPACE = re.compile(r'[^ \t\r\n]')
# A lone surrogate is valid JSON but no Unicode text: it has no utf-8 form.
_SURROGATE = re.compile('[\ud800-\udfff]')
# What may follow a token of an array of objects.
_AFTER = {'[': '{]', ',': '{', ']': ''}


# Passages may be longer than the 131,072 characters that the module allows a
# field unless told otherwise; this is the most that it takes everywhere.
csv.field_size_limit(2**31 - 1)


@contextlib.contextmanager
def _opened(path: str, line: Callable[[], int]) -> Iterator[io.TextIOWrapper]:
  """Opens utf-8 text; an error names the line that `line` then returns."""
  try:
    with files.reading(path) as raw:
      # utf-8-sig: spreadsheets put a byte order mark in front. newline='\n':
      # other line ends, such as U+2028, may be part of a text.
      with io.TextIOWrapper(raw, 'utf-8-sig', newline='\n') as file:
        yield file
  except UnicodeDecodeError as error:
    raise errors.DataError(
        f'{path}:{line()}: expected utf-8 text at or soon after this '
        f'line, got {error}. Convert the file to utf-8.') from error
  except OSError as error:
    raise errors.DataError(
        f'{path}:{line()}: cannot read further: {error}. Is the file '
        'complete?') from error


def read_all(path: str) -> Iterator[tuple[int, str]]:
  """Yields (line number from 1, line without its end)."""
  number = 0
  with _opened(path, lambda: number + 1) as file:
    for number, line in enumerate(file, 1):
      yield number, line.rstrip('\r\n')


def read(path: str) -> Iterator[tuple[int, str]]:
  """Yields as `read_all`, blank lines skipped."""
  return ((number, line) for number, line in read_all(path)
          if line and not line.isspace())


def json_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (line number, JSON object) of a file with one object per line."""
  for number, line in read(path):
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      raise errors.DataError(
          f'{path}:{number}: expected one JSON object per line, got '
          f'{shown(line)} ({error.msg} at column {error.colno}). Correct '
          'or remove the line.') from None
    if not isinstance(record, dict):
      raise errors.DataError(
          f'{path}:{number}: expected a JSON object, got {shown(record)}.')
    yield number, record


def json_records(path: str, inside: str = ''
                 ) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (line number, JSON object) of JSON lines or of one JSON array.

  An array is read record by record, however large and however it is broken
  into lines; a record's number is that of the line it begins in.

  Args:
    path: of the file.
    inside: the array may also be the first field, of this name, of one object,
      what follows it is not read; '' for no such files.
  """
  with _opened(path, lambda: 1) as file:
    head = file.read(_CHUNK)
  start = re.match(
      rf'\s*(\{{\s*"{re.escape(inside)}"\s*:\s*)?(?=\[)' if inside
      else r'\s*(?=\[)', head)
  if not start:
    yield from json_lines(path)
  else:
    yield from _array(path, start.end(), alone=not start.group().strip())


def csv_records(path: str) -> Iterator[tuple[int, dict[str, str]]]:
  """Yields (line number, {column: field}) of a CSV file with a header.

  A field is the text that stands there: '007' is no number, 'null' not nothing.
  A record's number is that of the line it ends in, as fields in quotes may
  have line ends.

  Raises:
    DataError: for quotes that do not end, and rows of another length.
  """
  number = 0
  with _opened(path, lambda: number + 1) as file:
    rows, header = csv.reader(file, strict=True), None
    try:
      for row in rows:
        number = rows.line_num
        if header is None:
          header = row
          if len(set(header)) < len(header):
            raise errors.DataError(
                f'{path}:{number}: expected columns of different names, got '
                f'{", ".join(header)}. Rename or remove one.')
        elif row and len(row) != len(header):
          raise errors.DataError(
              f'{path}:{number}: expected {len(header)} fields separated by '
              f'commas ({", ".join(header)}), got {len(row)} in {shown(row)}. '
              'Put fields with commas in double quotes.')
        elif row:
          yield number, dict(zip(header, row))
    except csv.Error as error:
      raise errors.DataError(
          f'{path}:{rows.line_num}: broken CSV: {error}. Put fields with '
          'commas, quotes or line ends in double quotes, and double the quotes '
          'in them.') from None


def _array(path: str, start: int = 0, alone: bool = True
           ) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the records of the array that begins at a character.

  Args:
    path: of the file.
    start: its place, within the first _CHUNK.
    alone: whether nothing may follow it.
  """
  decode, line, allowed = json.JSONDecoder().raw_decode, 1, '['
  with _opened(path, lambda: line) as file:
    buffer, at = file.read(_CHUNK), start
    line += buffer.count('\n', 0, start)
    while allowed or alone:
      found = _NO_SPACE.search(buffer, at)
      end = found.start() if found else len(buffer)
      line += buffer.count('\n', at, end)
      at = end
      if at == len(buffer):
        buffer, at = file.read(_CHUNK), 0
        if buffer:
          continue
        if allowed:
          raise errors.DataError(
              f'{path}:{line}: the JSON array ends without a "]". Is the file '
              'complete?')
        return
      if buffer[at] not in allowed:
        wanted = ' or '.join(allowed) or 'nothing more'
        raise errors.DataError(
            f'{path}:{line}: expected a JSON array of JSON objects, and here '
            f'{wanted}, got {shown(buffer[at:at + 60])}. Correct it.')
      if buffer[at] != '{':
        allowed = _AFTER[buffer[at]]
        at += 1
        continue
      while True:
        try:
          record, end = decode(buffer, at)
          break
        except json.JSONDecodeError as error:
          # Either the record is broken, or its end has not been read: then the
          # error is at the very end, or in a string that has no end yet.
          cut = (error.pos > len(buffer) - 16
                 or error.msg.startswith('Unterminated string'))
          more = cut and file.read(max(_CHUNK, len(buffer) - at))
          if not more:
            line += buffer.count('\n', at, error.pos)
            raise errors.DataError(
                f'{path}:{line}: broken JSON: {error.msg}, got '
                f'{shown(buffer[error.pos:error.pos + 60])}. Correct it; is '
                'the file complete?') from None
          buffer, at = buffer[at:] + more, 0
      yield line, record
      line += buffer.count('\n', at, end)
      at, allowed = end, ',]'


def shown(value: Any) -> str:
  """Returns a value as an error message shows it."""
  if isinstance(value, str):
    value = value[:_SHOWN]  # the rest would be cut below
  return terminal.shown(repr(value), _SHOWN)


def string(where: str, record: Mapping[str, Any], *names: str) -> str:
  """Returns the field of a record that `first` names, checked.

  Raises:
    DataError: if there is none, or it is not a string of Unicode text.
  """
  name = first(record, names)
  if name not in record:
    wanted = ' or '.join(f'"{name}"' for name in names)
    raise errors.DataError(
        f'{where}: field {wanted} is missing; the record has '
        f'{", ".join(sorted(record)) or "no fields"}. Add it.')
  return text(where, name, record[name])


def first(record: Mapping[str, Any], names: Sequence[str]) -> str:
  """Returns the first of `names` that a record has, not null where one is.

  Where rows come from columns, the fields that they lack are null.
  """
  held = [name for name in names if name in record]
  return next((name for name in held if record[name] is not None),
              held[0] if held else names[0])


def text(where: str, name: str, value: Any) -> str:
  """Returns the value of field `name` if it is a string of Unicode text."""
  if not isinstance(value, str):
    raise errors.DataError(
        f'{where}: expected "{name}" to be a string, got {shown(value)}. Put '
        'it in double quotes.')
  if not value.isascii() and _SURROGATE.search(value):
    raise errors.DataError(
        f'{where}: "{name}" holds a lone surrogate (\\ud800 to '
        '\\udfff), which is not Unicode text. Remove it.')
  return value


def titled(where: str, record: Mapping[str, Any], body: str) -> str:
  """Returns 'title body' where a record has a title that is not empty."""
  title = text(where, 'title', record.get('title') or '')
  return f'{title} {body}' if title else body


def identifier(where: str, record: Mapping[str, Any], *names: str) -> str:
  """Returns an id, the first field of `names`; integers are written out."""
  name = first(record, names)
  value = record.get(name)
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  return check_id(where, name, string(where, record, *names))


def check_id(where: str, name: str, value: str) -> str:
  """Returns `value`, of field `name`, if judgements can name it."""
  if not value or '\t' in value or '\n' in value or '\r' in value:
    raise errors.DataError(
        f'{where}: expected an "{name}" that is not empty and has no tab '
        f'or line end, got {shown(value)}; judgements could not name it.')
  return value


def table(path: str, layout: str, *, separator: str | None = '\t'
          ) -> Iterator[tuple[str, list[str]]]:
  """Yields ('file:line', fields) of a file without quoting or header.

  Args:
    path: of the file, maybe compressed.
    layout: names of the columns; where lines may have more or fewer, several
      such lists, separated by ' or '.
    separator: between columns; None takes runs of tabs and spaces.

  Raises:
    DataError: for another number of columns.
  """
  counts = {len(columns.split()) for columns in layout.split(' or ')}
  for number, line in read(path):
    fields = (line.split(separator) if separator
              else re.split('[ \t]+', line.strip(' \t')))
    if len(fields) not in counts:
      raise errors.DataError(
          f'{path}:{number}: expected columns {layout}, separated by '
          f'{"tabs" if separator else "tabs or spaces"}, got {len(fields)} in '
          f'{shown(line)}.')
    yield f'{path}:{number}', fields


def integer(where: str, value: str | int) -> int:
  """Returns a grade; raises DataError unless it is an integer of 32 bits.

  A grade that was written as a fraction, '1.0', is the integer.
  """
  try:
    grade = int(_ZEROS.sub('', str(value)))
  except ValueError:
    raise errors.DataError(
        f'{where}: expected an integer score in the last column, '
        f'got {shown(value)}. Round or scale the scores to integer '
        'grades, 0 for not relevant.') from None
  if not -2**31 <= grade < 2**31:
    raise errors.DataError(
        f'{where}: expected a score that fits 32 bits, got {grade}.')
  return grade


def number(where: str, value: Any) -> float:
  """Returns a score of a candidate; raises DataError unless it is finite."""
  try:
    score = float(value)
    if abs(score) <= _LARGEST_SCORE:
      return score
  except (TypeError, ValueError):
    pass
  raise errors.DataError(
      f'{where}: expected a finite number as score, got {shown(value)}.')


def named_files(folder: str, pattern: str) -> dict[str, str]:
  """Returns {NAME: path} of the files that match a pattern, sorted by file.

  Args:
    folder: may be absent.
    pattern: regular expression of the whole file name with a group `name`.

  Raises:
    DataError: if two files have the same NAME.
  """
  found: dict[str, str] = {}
  for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
    match = re.fullmatch(pattern, file)
    if match and not file.startswith('.'):
      name, path = match['name'], os.path.join(folder, file)
      if name in found:
        raise errors.DataError(
            f'{path}: {name!r} is also in {found[name]}; remove one.')
      found[name] = path
  return found
