"""The files of ``deploy/``, each tried as far as one machine without containers can."""
