"""The pipeline's tables, their migrations, and the connections to the server that holds them."""
