"""What is read from the tables for people: status, summaries, reports, metrics."""
