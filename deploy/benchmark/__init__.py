"""Load generation, raw samples and the tables made from them."""
