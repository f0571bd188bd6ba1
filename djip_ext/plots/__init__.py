"""Pictures, with matplotlib: of a lens, of what it does to images and predictions, and of a whole table."""
