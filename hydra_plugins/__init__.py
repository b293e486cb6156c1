"""Hydra looks for plugins in this package, and others put theirs into it as well.

Without the line below, a checkout that comes before site-packages hides every other plugin, such as Optuna's sweeper.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
