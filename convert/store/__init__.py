"""Where files are: local paths and URLs, locks, publication, the journal."""
