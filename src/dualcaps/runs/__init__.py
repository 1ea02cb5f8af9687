"""Run folders and atomic writing of files."""
