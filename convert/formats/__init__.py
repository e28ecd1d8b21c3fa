"""What several targets share: parameter trees, flat names, byte templates, screened graphs."""
