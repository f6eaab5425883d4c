"""What a step minimises: one file an objective, and what is added to their losses."""
