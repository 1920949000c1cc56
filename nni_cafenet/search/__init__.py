"""Searchers: asked for widths, told their scores."""
