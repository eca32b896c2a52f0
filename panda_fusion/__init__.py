"""panda-fusion: transfer soft prompts between tasks of one frozen language model.

The engine. It knows no method by name: PEFT methods, teachers, fusions, KD losses, similarities, tasks and
executors are pluggy plugins. Importing this package imports neither torch nor transformers.
"""

from panda_fusion.markers import hookimpl, hookspec

__version__ = "0.1.0"

__all__ = ["__version__", "hookimpl", "hookspec"]
