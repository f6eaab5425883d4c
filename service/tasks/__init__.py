"""What each task does around the model: texts to token ids, outputs to answers."""
