"""From the bytes of a file to pictures in memory; knows neither database nor storage nor models."""
