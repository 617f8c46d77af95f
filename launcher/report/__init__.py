"""`launcher report`: what a run has done, as text and as a web page."""
