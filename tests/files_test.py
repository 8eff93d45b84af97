"""Files and folders appear whole or not at all."""

import builtins
import errno
import os
import stat
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from retrieval_jax import files
from tests import disks


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

  @parameterized.parameters(((3, 5), 'f4'), ((0, 4), 'u2'), ((2,), 'i8'))
  def test_arrays_are_those_of_numpy(self, shape, dtype):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    mapped, saved, theirs = (
        os.path.join(self.folder, f'{name}.npy') for name in 'abc')
    with files.new_array(mapped, dtype, shape) as out:
      out[...] = array
    files.save_array(saved, array)
    np.save(theirs, array)
    with open(theirs, 'rb') as file:
      wanted = file.read()
    for path in (mapped, saved):
      with open(path, 'rb') as file:
        self.assertEqual(file.read(), wanted)

  @parameterized.parameters(
      {'side_effect': OSError(errno.EOPNOTSUPP, 'x')},
      {'side_effect': AttributeError('as on macOS')})
  def test_space_is_reserved_where_the_system_cannot(self, **kind):
    path = os.path.join(self.folder, 'a.npy')
    array = np.arange(300_000.)
    with mock.patch.object(os, 'posix_fallocate', **kind):
      with files.new_array(path, array.dtype, array.shape) as out:
        used = os.stat(path).st_blocks * 512
        out[...] = array
      with disks.files_of_at_most(10**6):
        with self.assertRaisesRegex(OSError, 'cannot write .*a.npy'):
          files.save_array(path, array)
    self.assertGreaterEqual(used, array.nbytes)  # not a hole

  def test_a_full_disk_is_named_with_the_size_before_anything_is_mapped(self):
    path = os.path.join(self.folder, 'a.npy')
    with disks.files_of_at_most(10**6):
      with self.assertRaisesRegex(
          OSError, 'cannot write .*a.npy, which needs 8 MB; .* are free there. '
          'Make room'):
        with files.new_array(path, np.float64, (1000, 1000)):
          self.fail('mapped')
      with self.assertRaisesRegex(OSError, 'a.npy, which needs 8 MB'):
        files.save_array(path, np.zeros((1000, 1000)))

  def test_what_may_not_be_written_is_named(self):
    refused = OSError(errno.EROFS, 'Read-only file system')
    for call, name in ((lambda: files.write_text(self.path, ''), 'open'),
                       (lambda: files.lock_folder(self.path), 'open'),
                       (lambda: files.new_folder(self.path), 'makedirs')):
      with self.subTest(name), mock.patch.object(
          builtins if name == 'open' else os, name, side_effect=refused):
        with self.assertRaisesRegex(
            OSError, 'Read-only file system: cannot write .*b.txt. Change'):
          if call() is not None:
            with call():
              pass

  @parameterized.parameters('text', 'folder')
  def test_a_full_disk_leaves_nothing_half_written(self, kind):
    with disks.files_of_at_most(10**4):
      with self.assertRaisesRegex(OSError, 'cannot write .*b.txt; '):
        if kind == 'text':
          files.write_text(self.path, 'x' * 10**5)
        else:
          with files.new_folder(self.path) as folder:
            with open(os.path.join(folder, 'c'), 'wb') as file:
              file.write(b'x' * 10**5)
    self.assertEqual(os.listdir(os.path.dirname(self.path)), [])

  def sealed(self, size=100):
    files.write_text(self.path, 'x' * size)
    folder = os.path.dirname(self.path)
    files.write_text(os.path.join(folder, 'inner', 'c.txt'), 'y')
    files.seal(folder)
    return folder

  @parameterized.product(
      damage=('cut', 'longer', 'empty', 'gone', 'other', 'changed'),
      sampled=(False, True))
  def test_damage_of_a_sealed_folder_is_named(self, damage, sampled):
    folder = self.sealed()
    self.assertIsNone(files.damage(folder, sampled=sampled))
    wanted = {
        'cut': 'b.txt: has 50 bytes, expected 100', 'longer': 'b.txt: has 101',
        'empty': 'b.txt: has 0', 'gone': 'b.txt: is not there',
        'other': 'b.txt: other bytes', 'changed': 'b.txt: other bytes'}
    if damage == 'gone':
      os.remove(self.path)
    else:
      self.write({'cut': b'x' * 50, 'longer': b'x' * 101, 'empty': b'',
                  'other': b'y' * 100,
                  'changed': b'x' * 99 + b'y'}[damage])
    self.assertRegex(files.damage(folder, sampled=sampled), wanted[damage])

  def test_files_in_folders_are_sealed_and_later_ones_are_not_looked_at(self):
    folder = self.sealed()
    files.write_text(os.path.join(folder, 'later.txt'), 'z')
    self.assertIsNone(files.damage(folder))
    os.remove(os.path.join(folder, 'inner', 'c.txt'))
    self.assertRegex(files.damage(folder), 'inner/c.txt: is not there')

  def test_samples_are_of_the_whole_length_of_a_large_file(self):
    size = 3 * 2**20
    folder = self.sealed(size)
    for first in (0, size // 2, size - size // 64):
      content = bytearray(b'x' * size)
      content[first:first + size // 64] = b'y' * (size // 64)
      self.write(content)
      self.assertRegex(files.damage(folder, sampled=True), 'other bytes')
    content = bytearray(b'x' * size)
    content[20_000] ^= 1  # between two samples
    self.write(content)
    self.assertIsNone(files.damage(folder, sampled=True))
    self.assertRegex(files.damage(folder), 'b.txt: other bytes')

  @parameterized.parameters('', '[]', '{"b.txt": 3}', '{"b.txt": {}}')
  def test_a_seal_that_is_damaged_itself_is_named(self, content):
    folder = self.sealed()
    files.write_text(os.path.join(folder, files.SEAL), content)
    self.assertRegex(files.damage(folder), 'files.json: is damaged')
    os.remove(os.path.join(folder, files.SEAL))
    self.assertIsNone(files.damage(folder))

  def test_a_folder_is_of_one_process_while_that_lives(self):
    code = ('import os, signal, sys, time\n'
            'from retrieval_jax import files\n'
            'with files.lock_folder(sys.argv[1]):\n'
            '  print("locked", flush=True)\n'
            '  time.sleep(60)\n')
    with subprocess.Popen([sys.executable, '-c', code, self.folder],
                          stdout=subprocess.PIPE) as other:
      other.stdout.readline()
      with self.assertRaisesRegex(
          OSError, f'in use by process {other.pid} on .*another folder'):
        with files.lock_folder(self.folder):
          pass
      other.kill()
    with files.lock_folder(self.folder):
      with self.assertRaisesRegex(OSError, f'process {os.getpid()} on'):
        with files.lock_folder(self.folder):
          pass
    self.assertEqual(os.listdir(self.folder), [])

  def test_without_locks_a_folder_is_not_kept(self):
    with mock.patch.object(files, 'fcntl', None):
      with files.lock_folder(self.folder), files.lock_folder(self.folder):
        pass


if __name__ == '__main__':
  absltest.main()
