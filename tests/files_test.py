"""Files and folders appear whole or not at all."""

import os
import stat
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from retrieval_jax import files


class FilesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path
    self.path = os.path.join(self.folder, 'a', 'b.txt')

  def write(self, content):
    os.makedirs(os.path.dirname(self.path), exist_ok=True)
    with open(self.path, 'wb') as file:
      file.write(content)

  def read(self):
    with open(self.path, 'rb') as file:
      return file.read()

  def test_text_is_utf8_with_the_line_ends_as_written(self):
    files.write_text(self.path, 'ü\r\n\u2028\n')
    self.assertEqual(self.read(), 'ü\r\n\u2028\n'.encode())

  @parameterized.parameters(True, False)
  def test_an_interrupted_write_leaves_the_old_file(self, at_the_end):
    files.write_text(self.path, 'old')
    with self.assertRaises(KeyboardInterrupt):
      if at_the_end:
        with mock.patch.object(os, 'replace', side_effect=KeyboardInterrupt):
          files.write_text(self.path, 'new')
      else:
        with files.replacing(self.path) as file:
          file.write('new')
          file.flush()
          raise KeyboardInterrupt
    self.assertEqual(self.read(), b'old')
    self.assertEqual(os.listdir(os.path.dirname(self.path)), ['b.txt'])

  def test_files_and_folders_have_the_rights_that_the_umask_leaves(self):
    before = os.umask(0o027)
    try:
      files.write_text(self.path, 'x')
      with files.new_folder(os.path.join(self.folder, 'new')):
        pass
    finally:
      os.umask(before)
    mode = lambda path: stat.S_IMODE(os.stat(path).st_mode)
    self.assertEqual(mode(self.path), 0o640)
    self.assertEqual(mode(os.path.join(self.folder, 'new')), 0o750)

  def test_a_folder_is_complete_or_absent(self):
    folder = os.path.join(self.folder, 'x', 'y')
    with self.assertRaises(KeyboardInterrupt):
      with files.new_folder(folder) as temporary:
        files.write_text(os.path.join(temporary, 'a'), '')
        raise KeyboardInterrupt
    self.assertEqual(os.listdir(os.path.dirname(folder)), [])
    with files.new_folder(folder) as temporary:
      files.write_text(os.path.join(temporary, 'a'), '')
      self.assertFalse(os.path.exists(folder))
    self.assertEqual(os.listdir(os.path.dirname(folder)), ['y'])
    self.assertEqual(os.listdir(folder), ['a'])

  def test_the_folder_of_a_faster_process_is_kept(self):
    folder = os.path.join(self.folder, 'x')
    with files.new_folder(folder) as temporary:
      files.write_text(os.path.join(temporary, 'mine'), '')
      files.write_text(os.path.join(folder, 'theirs'), '')
    self.assertEqual(os.listdir(folder), ['theirs'])
    self.assertEqual(os.listdir(self.folder), ['x'])

  @parameterized.parameters('new_folder', 'replacing')
  def test_what_a_killed_process_left_is_removed(self, kind):
    path, user = (os.path.join(self.folder, name)
                  for name in ('x', '.x.notes'))
    files.write_text(user, 'not of ours')
    subprocess.run([sys.executable, '-c', (
        'import os, signal, sys\n'
        'from retrieval_jax import files\n'
        f'with files.{kind}(sys.argv[1]) as one:\n'
        '  os.kill(os.getpid(), signal.SIGKILL)\n'), path], check=False)
    self.assertLen(os.listdir(self.folder), 2)
    with getattr(files, kind)(path):  # of a living process
      with getattr(files, kind)(path):
        self.assertLen(os.listdir(self.folder), 3)
      self.assertLen(os.listdir(self.folder), 3)
    self.assertCountEqual(os.listdir(self.folder), ['x', '.x.notes'])

  @parameterized.parameters('new_folder', 'replacing')
  def test_without_locks_all_is_written_and_nothing_removed(self, kind):
    """As on Windows, where Python has no fcntl."""
    path = os.path.join(self.folder, 'x')
    left = os.path.join(self.folder, '.x.01234567')
    with open(left, 'w', encoding='utf-8'):
      pass
    with mock.patch.object(files, 'fcntl', None):
      with getattr(files, kind)(path):
        self.assertLen(os.listdir(self.folder), 2)
    self.assertCountEqual(os.listdir(self.folder), ['x', '.x.01234567'])

  def test_what_reads_zst_is_named_where_there_is_none(self):
    with mock.patch.dict(sys.modules, dict.fromkeys(files._ZSTANDARD)):
      with self.assertRaisesRegex(ModuleNotFoundError, 'pip install backports'):
        with files.reading(self.path + '.zst'):
          pass

  def test_json_reads_back(self):
    value = {'ü': [1, 2.5, None, True], 'b': {}}
    files.write_json(self.path, value)
    self.assertEqual(files.read_json(self.path), value)
    self.assertStartsWith(self.read().decode(), '{\n  "ü": [\n')
    self.assertEndsWith(self.read().decode(), '}\n')

  @parameterized.parameters((float('nan'), ValueError), (b'x', TypeError))
  def test_what_json_cannot_hold_leaves_the_old_file(self, value, error):
    files.write_json(self.path, 1)
    with self.assertRaisesRegex(error, 'b.txt: expected a value that JSON'):
      files.write_json(self.path, {'a': value})
    self.assertEqual(files.read_json(self.path), 1)

  @parameterized.parameters(
      (b'{\n"a": 1,\n', 'b.txt:3: expected JSON .*complete'),
      (b'{\n"a" 1}', r'b.txt:2: expected JSON \(Expecting .:. deli.*column 5'),
      (b'"\n\xff"', 'b.txt:2: expected JSON in UTF-8'))
  def test_what_is_no_json_is_named_with_its_line(self, content, message):
    self.write(content)
    with self.assertRaisesRegex(ValueError, message):
      files.read_json(self.path)


if __name__ == '__main__':
  absltest.main()
