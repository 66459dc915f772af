"""The state machine of uploads and batches: every change of a status is made here."""
