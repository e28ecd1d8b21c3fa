"""How good agents are: unclipped returns of whole episodes, their statistics, tables and plots."""
