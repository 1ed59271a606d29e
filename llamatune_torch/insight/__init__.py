"""What a study knows: explanations as plain records, figures that draw them, a page that shows them."""
