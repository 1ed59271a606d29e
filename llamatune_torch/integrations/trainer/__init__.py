"""A Hugging Face ``Trainer`` as the objective."""
