"""Files of strangers: read within bounds, run by nobody. Knows nothing of agents."""
