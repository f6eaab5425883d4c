"""From corpora to batches: readers, splits by document, mining, token shards, and the mixture of tasks."""
