"""Decides which uploads go to which run, and which run is launched next."""
