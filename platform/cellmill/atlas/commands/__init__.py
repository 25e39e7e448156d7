"""The commands of `cellmill atlas`, by what one wants to know or do."""
