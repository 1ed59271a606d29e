"""Decoding parameters of a language model as the search space, and a score of its answers as the objective."""
