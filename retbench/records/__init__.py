"""Records: everything about finished runs, and the results folder."""
