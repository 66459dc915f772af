"""What the pipeline does, called alike by a step, a command or a test."""
