"""The network as modules that people import, one file for each framework."""
