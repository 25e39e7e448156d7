"""The whole line on real cells, from a file to an answered HTTP request."""
