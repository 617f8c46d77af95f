"""`launcher watch`: a run in a full-screen terminal view."""
