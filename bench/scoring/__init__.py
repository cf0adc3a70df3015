"""Scores: what is measured on generated images, each with its error."""
