"""Many agents: which ones, on how many processes, and the summary of a run."""
