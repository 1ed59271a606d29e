"""Strategies: which run starts, which goes on and which never does. A page each, pure functions of the record."""
