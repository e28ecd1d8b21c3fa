"""Many agents: which ones, on how many processes, and the sum of it."""
