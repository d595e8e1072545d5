"""Private: one module for each detector, and what they share."""
