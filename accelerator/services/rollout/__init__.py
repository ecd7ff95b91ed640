"""How a policy gets to run, is kept, judged, and left again. Knows no policy key: that is policy/."""
