"""HTTP: one file a family of endpoints, their schemas, and the one envelope of all errors."""
