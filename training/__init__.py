"""Training of the embedded model; see docs/model_card.rst."""
