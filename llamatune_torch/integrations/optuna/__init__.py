"""Studies and trials to and from Optuna."""
