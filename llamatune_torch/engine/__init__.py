"""The engine: pure torch, from the history of a study to the next parameters.

No module in here knows a clock, a file, a network, a global random generator or a global device.
Read ``suggest.py`` first.
"""

import warnings

with warnings.catch_warnings():
    # linear_operator (below gpytorch) decorates with torch.jit.script, which torch deprecates: under `python -W error`
    # it could not be imported.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.script`", category=DeprecationWarning)
    import linear_operator  # noqa: F401
