"""Which requests go to the model together, and when."""
