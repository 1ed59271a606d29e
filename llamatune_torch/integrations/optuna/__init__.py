"""Studies to and from Optuna."""
