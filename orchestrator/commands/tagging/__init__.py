"""The commands that tag images, and change tags again."""
