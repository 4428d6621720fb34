"""What an evaluation shows and leaves on the disk: tables, plots, the page."""
