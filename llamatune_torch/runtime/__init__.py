"""The shell: what touches the world. ``optimizer.py`` holds the one mutable object."""

import sys

from llamatune_torch.files import working_directory

if "torch" not in sys.modules:  # its MKL would end the process
    working_directory("torch cannot be loaded without one")
