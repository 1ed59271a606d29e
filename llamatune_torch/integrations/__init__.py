"""Other people's frameworks, each behind one door."""
