"""What counts as a description: audit, refusals, reuse of stored results, trial of prompts."""
