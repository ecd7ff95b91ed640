"""`accelctl doctor`: what is in the way of video on this box. Observers look, judges (pure) say what it means."""
