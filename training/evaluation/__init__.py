"""How good weights are: predictors of a network or a service, and scores of what they predict."""
