"""Python takes this folder for `robust_jax` from the one above it: the package lies one down."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    __name__, Path(__file__).parent / 'robust_jax' / '__init__.py')
sys.modules[__name__] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules[__name__])
