"""The files of ``deploy/``, each tested as far as one machine without containers allows."""
