"""Results for people: tables, plots, one HTML page, files of numbers."""
