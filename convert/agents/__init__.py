"""What an agent is: its architecture, weights, identity and record. No framework."""
