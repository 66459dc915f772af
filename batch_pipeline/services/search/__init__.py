"""Search: by meaning, words and filters, in embedding spaces."""
