"""Clients of everything that describes pictures and embeds text, behind one interface."""
