"""Progress of batches: sends progress messages, and follows a batch until it ends."""
