"""What the DSI wrote: parsed, checked, compiled to rows. Pure: no socket, clock, thread or compiled code here."""
