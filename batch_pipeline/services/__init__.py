"""What the pipeline does, as plain functions and objects: called alike by a step, a command or a test."""
