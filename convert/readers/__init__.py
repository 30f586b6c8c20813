"""Safe readers of foreign checkpoint files: nothing in them is run."""
