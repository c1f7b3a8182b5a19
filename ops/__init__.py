"""What people and machines touch: command line, settings, ingest, run, simulate."""
