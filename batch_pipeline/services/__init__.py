"""The functions of the pipeline; steps, commands and tests call the same functions."""
