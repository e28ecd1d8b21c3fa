"""Reading untrusted files within bounds, and running nothing in them; checksums. It knows nothing of agents."""
