"""The shell: what touches the world. ``optimizer.py`` holds the one mutable object."""
