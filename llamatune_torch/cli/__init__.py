"""The command line, ``llamatune``: the grammar in ``main.py``, what each command does in a module of its own."""
