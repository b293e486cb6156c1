"""fitlaunch: launch multi-GPU fine-tuning that fits. Nothing here imports torch."""

__version__ = "0.1.0"
