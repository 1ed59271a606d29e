"""The engine: pure torch, from the history of a study to the next parameters.

No module in here knows a clock, a file, a network, a global random generator or a global device.
Read ``suggest.py`` first.
"""
