"""Images, masks and folder layouts: knows files, never models."""
