"""All methods on the same uploads: which runs make up a comparison, and running them one after another."""
