"""What is asked of the hub's library, which has no hub to talk to here."""

import sys
from unittest import mock

from absl.testing import absltest

from retrieval_jax.models import hub


class PushTest(absltest.TestCase):

  def test_a_folder_is_uploaded_to_a_repository_that_is_private(self):
    for public in (False, True):
      api = mock.Mock()
      library = mock.Mock(HfApi=mock.Mock(return_value=api))
      with mock.patch.dict(sys.modules, huggingface_hub=library):
        address = hub.push('/models/mine', 'me/mine', public=public)
      self.assertEqual(address, 'https://huggingface.co/me/mine')
      api.create_repo.assert_called_once_with(
          'me/mine', private=not public, exist_ok=True)
      api.upload_folder.assert_called_once()
      self.assertEqual(
          api.upload_folder.call_args.kwargs['folder_path'], '/models/mine')
      self.assertEqual(api.upload_folder.call_args.kwargs['repo_id'], 'me/mine')

  def test_what_the_hub_refuses_is_said_in_its_words(self):
    api = mock.Mock(upload_folder=mock.Mock(side_effect=ValueError('no token')))
    library = mock.Mock(HfApi=mock.Mock(return_value=api))
    with mock.patch.dict(sys.modules, huggingface_hub=library):
      with self.assertRaisesRegex(
          OSError, 'push_to_hub=me/mine: out is written, but .*: no token'):
        hub.push('out', 'me/mine')

  def test_a_missing_library_is_named_before_anything_is_written(self):
    with mock.patch.dict(sys.modules, huggingface_hub=None):
      with self.assertRaisesRegex(ImportError, r'needs .*retrieval_jax\[hub\]'):
        hub.check_installed('--push_to_hub=me/mine')


if __name__ == '__main__':
  absltest.main()
