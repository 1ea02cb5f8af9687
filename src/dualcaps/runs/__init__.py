"""Run folders, and the one way in which files are written."""
