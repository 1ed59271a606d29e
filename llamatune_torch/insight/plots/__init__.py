"""The figures of a study, for notebooks and papers, and as SVG for the page; the only door to matplotlib."""
