"""Insight: what a study knows, as plain records, figures that draw them, and a page that shows them."""
