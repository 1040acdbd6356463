"""The tools are scripts, not a package."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tool():
    """Imports a script of tools/ by its name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / f"tools/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
