"""Packaging of retrieval_jax; `pip install -e .` is the intended use."""

import pathlib
import re

import setuptools

# Read, not imported: what the package needs may not be installed yet.
VERSION = re.search(
    r"^__version__ = '(.+)'$",
    pathlib.Path(__file__).with_name('retrieval_jax').joinpath(
        '__init__.py').read_text('utf-8'), re.MULTILINE).group(1)

setuptools.setup(
    name='retrieval_jax',
    version=VERSION,
    description='Train dense retrievers with hard negatives from stale, '
                'sharded target embeddings, in JAX.',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(
        include=['retrieval_jax', 'retrieval_jax.*',
                 'experiments', 'experiments.*', 'configs']),
    install_requires=[
        'absl-py',
        'array_record; sys_platform == "linux"',
        'bm25s',
        'etils',
        'flax>=0.12',
        'grain',
        'ir-measures',
        'jax>=0.10',
        'matplotlib',
        'ml-collections',
        'numpy',
        'optax',
        'orbax-checkpoint',
        'rich',
        'safetensors',
        'tensorboardX',
        'tensorflow-datasets',
        'tokenizers',
        'tqdm',
    ],
    extras_require={
        'faiss': ['faiss-cpu'],
        'hf': ['datasets'],
        'hub': ['huggingface_hub'],
        'ir_datasets': ['ir-datasets'],
        'test': ['pytest', 'pytest-xdist', 'nbformat', 'nbclient', 'ipykernel',
                 'faiss-cpu', 'datasets', 'ir-datasets'],
    },
)
