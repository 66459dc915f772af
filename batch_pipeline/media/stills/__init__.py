"""Still pictures: one module for each way of decoding formats."""
