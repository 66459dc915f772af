"""Still pictures: a module for each way in which formats have to be decoded."""
