"""A check that the packages of the extra `web` are installed."""

from __future__ import annotations

import importlib

from diamond_gym.errors import MissingDependencyError


def check_installed() -> None:
    """Import the web server's packages.

    Raises:
        MissingDependencyError: One is not installed.
    """
    for name in ("starlette", "uvicorn", "websockets"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingDependencyError(f'--web needs {name}: pip install "diamond-gym[web]"') from error
