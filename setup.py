"""The packages of the wheel. Everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["modality_forcing*"]), "modality_forcing.configs"],
    package_dir={"modality_forcing.configs": "configs"},  # `--config=demo` finds them there
)
