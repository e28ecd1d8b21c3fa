"""One module for each checkpoint format that is read."""
