"""Records: everything about one run, and the folder they are kept in."""
