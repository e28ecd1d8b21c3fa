"""Frameworks: found without being imported, imported late and quietly."""
