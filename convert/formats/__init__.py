"""What several formats share: bounds, archives, pickles, parameter trees."""
