"""Looking at results by hand: interactive slices, and the card of one model."""
