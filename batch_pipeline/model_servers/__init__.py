"""Clients of the models that describe pictures and embed text, behind one interface."""
