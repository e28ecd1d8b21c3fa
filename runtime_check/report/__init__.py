"""What was found, to read: as JSON, as a table for the terminal, as one HTML page, and the log of every episode."""
