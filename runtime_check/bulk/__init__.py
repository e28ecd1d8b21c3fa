"""Many agents: which ones to check, what is known of them already, and what became of each."""
