"""The judge's own reader of each source of agents: it shares no code with the converter."""
