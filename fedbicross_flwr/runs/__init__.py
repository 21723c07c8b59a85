"""A run's folder: what is kept while it lasts and what it leaves behind."""
