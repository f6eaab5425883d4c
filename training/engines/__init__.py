"""What a step does with a batch: losses, gradients, weights. An engine for each way to hold the weights."""
