"""Progress of batches: messages for those who watch, and watching itself."""
