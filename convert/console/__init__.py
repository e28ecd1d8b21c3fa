"""What both commands share at a terminal: help, options, completion, standard streams."""
