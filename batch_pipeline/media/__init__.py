"""From the bytes of a file to pictures in memory, independent of database, storage and models."""
