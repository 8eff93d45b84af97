"""For tools that look for setup.py; pyproject.toml says everything."""

import setuptools

setuptools.setup()
